"""What the production stack says of a service that is missing."""

from __future__ import annotations

import pytest

from dev import services


def test_without_sshd_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    with pytest.raises(services.ServiceMissing) as caught:
        services.sshd()
    assert str(caught.value) == "sshd is not installed. Install it (Debian: apt-get install openssh-server)"
