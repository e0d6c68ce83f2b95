"""What the tests of the sensors use: a sensor asks a server for its version before anything else."""

from __future__ import annotations

import pytest

from tests.stub_server import NewEnoughServer, StubServer


@pytest.fixture
def kind_of_stub() -> type[StubServer]:
    """Servers of which a test sees only what the sensors ask besides."""
    return NewEnoughServer
