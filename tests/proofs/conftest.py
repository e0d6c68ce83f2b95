"""What the state machines need, as in ``tests/faults``."""

from tests.faults.conftest import site, world  # noqa: F401  # fixtures
