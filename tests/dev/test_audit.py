"""What the audit makes of what pip-audit says: the real one, with a service of our own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dev import audit
from tests.stub_server import Reply, StubServer

KNOWN = {
    "vulns": [
        {
            "id": "GHSA-1",
            "modified": "2026-01-01T00:00:00Z",
            "published": "2026-01-01T00:00:00Z",
            "summary": "bad",
            "affected": [
                {
                    "package": {"name": "left-pad", "ecosystem": "PyPI"},
                    "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.0"}]}],
                    "versions": ["1.0"],
                }
            ],
        }
    ]
}


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    file = tmp_path / "pins.txt"
    file.write_text("left-pad==1.0\n")
    return file


def run(server: str, pins: Path, tmp_path: Path) -> int:
    options = ["--osv-url", server, "--cache-dir", str(tmp_path / "cache"), "--timeout", "5"]
    return audit.audit(options, pins)


def test_an_audit_without_findings_passes(
    stub: Callable[..., StubServer], pins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = stub({})
    assert run(server.url, pins, tmp_path) == 0
    assert capsys.readouterr().out == "audit: 1 pinned versions checked\n"
    assert server.requests[0].body["package"] == {"name": "left-pad", "ecosystem": "PyPI"}


def test_a_vulnerability_fails_unless_there_is_a_reason(
    stub: Callable[..., StubServer],
    pins: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = stub(KNOWN)
    assert run(server.url, pins, tmp_path) == 1
    assert "audit: left-pad 1.0: GHSA-1, fixed in 2.0\n" in capsys.readouterr().out
    monkeypatch.setitem(audit.EXCEPTIONS, "GHSA-1", "not used here")
    assert run(server.url, pins, tmp_path) == 0


def test_a_service_that_is_out_of_reach_is_said_and_no_failure(
    pins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("http://127.0.0.1:9", pins, tmp_path) == 0
    assert capsys.readouterr().out == (
        "audit: OSV's list of vulnerabilities cannot be reached, so nothing was checked\n"
    )


@pytest.mark.parametrize("reply", [Reply(200, b"<html>"), Reply(403, b"no")])
def test_any_other_failure_of_the_audit_fails(
    stub: Callable[..., StubServer],
    pins: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    reply: Reply,
) -> None:
    assert run(stub(reply).url, pins, tmp_path) == 1
    assert capsys.readouterr().out.startswith("audit: pip-audit failed with 1: ")


def test_every_exception_has_its_reason() -> None:
    assert all(reason.strip() for reason in audit.EXCEPTIONS.values())
