"""The submit host against what SSHRemoteJobOperator and its trigger ask of one, by Airflow's own hooks."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import pytest
from airflow.providers.ssh.hooks.ssh import SSHHook, SSHHookAsync

from dev.jobmon_sandbox import wait_until
from dev.submit_host import SubmitHost

Tell = Callable[[str], tuple[int, bytes, bytes]]


@pytest.fixture(scope="module")
def host() -> Iterator[SubmitHost]:
    with SubmitHost({"JOBMON__HTTP__SERVICE_URL": "http://jobmon.example", "AIRFLOW_HOME": "/x"}) as host:
        yield host


@pytest.fixture
def conn_id(host: SubmitHost, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AIRFLOW_CONN_HOST", json.dumps(host.connection))
    return "host"


@pytest.fixture
def tell(conn_id: str) -> Iterator[Tell]:
    hook = SSHHook(conn_id)
    with hook.get_conn() as client:
        yield lambda command: hook.exec_ssh_client_command(client, command, False, None, timeout=30)


def test_a_session_has_a_shell_the_settings_and_the_exit_code(tell: Tell) -> None:
    command = 'set -o pipefail; echo "$JOBMON__HTTP__SERVICE_URL"; echo problem >&2; exit 7'
    assert tell(command) == (7, b"http://jobmon.example\n", b"problem\n")


def test_nothing_else_of_our_environment_reaches_a_session(tell: Tell) -> None:
    assert tell('echo "[$AIRFLOW_HOME]"') == (0, b"[]\n", b"")


def test_a_session_is_at_home_in_a_folder_of_the_hosts(tell: Tell) -> None:
    code, home, _ = tell('cd && pwd && bash -lc "cd && pwd"')
    assert code == 0
    assert {Path(line).name for line in home.decode().splitlines()} == {"home"}
    assert str(Path.home()) not in home.decode().splitlines()


async def test_the_hook_for_asyncio_gets_in_too_and_gets_a_long_output_as_a_whole(conn_id: str) -> None:
    command = f"{sys.executable} -c \"print('x' * 300_000)\"; exit 3"
    code, output, problems = await SSHHookAsync(conn_id).run_command(command)
    assert (code, problems) == (3, "")
    assert len(output) == 300_001


def test_another_key_is_refused(
    host: SubmitHost, conn_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = tmp_path / "stranger"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(stranger)
    with pytest.raises(Exception, match="Authentication failed"):
        SSHHook(conn_id, key_file=str(stranger), conn_retry_attempts=1).get_conn()


async def test_what_a_session_leaves_behind_goes_on_and_ends_with_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = tmp_path / "pid"
    with SubmitHost({}) as host:
        monkeypatch.setenv("AIRFLOW_CONN_PASSING", json.dumps(host.connection))
        job = f"nohup bash -c 'echo $$ > {pid_file}; exec sleep 600' < /dev/null > /dev/null 2>&1 &"
        assert await SSHHookAsync("passing").run_command(job) == (0, "", "")
        await asyncio.to_thread(wait_until, lambda: pid_file.exists() and pid_file.read_text(), 20, "a job")
        process = Path("/proc") / pid_file.read_text().strip()
        assert process.exists()
    assert not process.exists()
