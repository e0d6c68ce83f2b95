"""How a worker starts an executor, with processes that are real and quick."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_jobmon_provider.client.exceptions import ConfigError
from airflow_jobmon_provider.client.heartbeat import Heartbeat
from airflow_jobmon_provider.client.redaction import NO_SECRETS, without_userinfo
from airflow_jobmon_provider.client.settings import Settings, basic_authorization
from airflow_jobmon_provider.execution import executor, process
from airflow_jobmon_provider.execution.environment import executor_environment, find_python, jobmon_settings
from airflow_jobmon_provider.execution.process import EXECUTOR, Execution, executor_command
from airflow_jobmon_provider.execution.watching import ExecutorEnded
from dev.jobmon_sandbox import wait_until
from tests.execution.conftest import group_members
from tests.execution.programs import Lines, run

SERVER = "https://jobmon.example.org:8070/api/v3"


def finish(execution: Execution) -> int | None:
    with pytest.raises(ExecutorEnded):
        execution.wait(30)
    execution.stop()
    return execution.exit_code


# What it writes


def test_each_line_is_passed_on_as_it_comes() -> None:
    started, log = run("print('one'); input_ = __import__('os').read(int(__import__('sys').argv[-1]), 1)")
    try:
        while not log.lines:
            started.wait(0.1)
        assert log.lines == ["one"]
        assert started.exit_code is None
    finally:
        started.stop()
    assert started.exit_code == -signal.SIGTERM


def test_a_last_line_without_an_end_is_passed_on() -> None:
    started, log = run("import sys; print('one\\n\\ntwo'); sys.stderr.write('three'); sys.exit(4)")
    assert finish(started) == 4
    assert log.lines == ["one", "two", "three"]


# Why it ended


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (
            "print('executor: no cluster'); sys.stderr.write('/x.py:1: UserWarning: leaked\\n'); sys.exit(4)",
            "no cluster (the executor's exit code: 4)",
        ),
        (
            "print('executor: at work'); print('segmentation fault'); sys.exit(139)",
            "the executor ended with exit code 139; its last line: segmentation fault",
        ),
        (
            "print('executor: at work'); os.kill(os.getpid(), signal.SIGKILL)",
            "the executor was killed by SIGKILL; its last line: executor: at work",
        ),
        (
            "os.kill(os.getpid(), signal.SIGRTMIN + 1)",
            f"the executor was killed by signal {signal.SIGRTMIN + 1}; it has written nothing",
        ),
        (
            "print('x.py: error: no id'); sys.exit(2)",
            "the executor ended with exit code 2; its last line: x.py: error: no id",
        ),
        ("print('executor: ERROR (E)'); sys.exit(1)", None),
        ("print('executor: DONE (D)')", None),
    ],
)
def test_what_kept_it_from_the_end_is_one_line_with_the_cause_first(program: str, says: str | None) -> None:
    started, _ = run(f"import os, signal, sys; {program}")
    finish(started)
    assert started.problem == says


@pytest.mark.parametrize("said", ["at http://me:p@ss@h/x://y?@z", "//@", "no address", "http://h:1/a b@c"])
def test_the_executor_hides_in_an_address_what_the_provider_hides(said: str) -> None:
    assert executor._line(OSError(said)) == f"OSError: {without_userinfo(said)}"


def test_the_servers_password_is_not_among_the_arguments() -> None:
    environment = executor_environment(
        Settings(SERVER, headers={"Authorization": basic_authorization("me", "p@ssw0rd")}), Heartbeat()
    )
    started, log = run(
        "import os; print(os.environ['JOBMON__HTTP__SERVICE_URL'], flush=True); os.read(0, 1);"
        " os.read(int(__import__('sys').argv[-1]), 1)",
        environment,
    )
    try:
        while not log.lines:
            started.wait(0.1)
        process = Path(f"/proc/{started._process.pid}")
        arguments = (process / "cmdline").read_bytes()
        assert b"--lifeline" in arguments
        assert b"p@ssw0rd" not in arguments
        assert b"p%40ssw0rd" not in arguments
        assert (process / "environ").stat().st_mode & 0o077 == 0  # where it is, for this user alone
    finally:
        started.stop()


# Its life


def test_stop_ends_all_that_was_started() -> None:
    program = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "subprocess.Popen(['sleep', '600'])\n"
        "print('started', flush=True)\n"
        "time.sleep(600)"
    )
    started, log = run(program)
    while "started" not in log.lines:
        started.wait(0.1)
    group = started._process.pid
    assert len(group_members(group)) == 2
    started.stop()
    assert started.exit_code == 7
    wait_until(lambda: not group_members(group), 10, "everything to end")


def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE", 0.5)
    program = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\ntime.sleep(600)"
    )
    started, log = run(program)
    while "deaf" not in log.lines:
        started.wait(0.1)
    started.stop()
    assert started.exit_code == -signal.SIGKILL


def test_stop_waits_for_one_that_ends_by_itself() -> None:
    started, log = run("import time; time.sleep(0.5); print('by myself')")
    started.stop(patience=30)
    assert started.exit_code == 0
    assert log.lines == ["by myself"]


def test_a_worker_that_is_killed_is_noticed_by_the_executor(tmp_path: Path) -> None:
    told = tmp_path / "told"
    child = f"import os, sys; os.read(int(sys.argv[-1]), 1); open({str(told)!r}, 'w').close()"
    worker = (
        "import os, signal, sys\n"
        "from tests.execution.programs import run\n"
        f"execution, log = run({child!r})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", worker], cwd=Path(__file__).parents[2], timeout=60)
    assert done.returncode == -signal.SIGKILL
    wait_until(told.exists, 20, "the executor to notice")


def test_one_that_was_let_go_goes_on(tmp_path: Path) -> None:
    written = tmp_path / "written"
    program = f"import time; time.sleep(0.5); print('to nobody', flush=True); open({str(written)!r}, 'w')"
    started, _ = run(program)
    started.let_go()
    wait_until(written.exists, 20, "the executor to finish")


def test_one_that_cannot_be_started_says_so(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("no program")
    broken.chmod(0o755)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=r"python cannot be started: Exec format error"):
        Execution([str(broken)], {}, Lines(), NO_SECRETS)
    assert len(os.listdir("/proc/self/fd")) <= before


# How it is started


def test_the_command_holds_ids_and_no_shell() -> None:
    command = executor_command("/py", 12, 34, "slurm; rm -rf /")
    assert command == [
        "/py",
        str(EXECUTOR),
        "--workflow-id=12",
        "--workflow-run-id=34",
        "--cluster-name=slurm; rm -rf /",
    ]


def test_the_environment_names_the_connections_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIRFLOW__CORE__FERNET_KEY", "AIRFLOW_CONN_X", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("JOBMON__HTTP__SERVICE_URL", "http://elsewhere")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    settings = Settings(SERVER, headers={"Authorization": basic_authorization("m@e", "p:a/ss$HOME")})
    environment = executor_environment(settings, Heartbeat(29.5, 3.1))
    assert "secret" not in environment.values()
    assert environment["SLURM_CONF"] == "/etc/slurm.conf"
    assert {key: value for key, value in environment.items() if key.startswith("JOBMON__")} == {
        "JOBMON__HTTP__SERVICE_URL": "https://m%40e:p%3Aa%2Fss%24HOME@jobmon.example.org:8070",
        "JOBMON__HTTP__ROUTE_PREFIX": "/api/v3",
        "JOBMON__HEARTBEAT__WORKFLOW_RUN_INTERVAL": "30",
        "JOBMON__HEARTBEAT__REPORT_BY_BUFFER": "3.1",
    }


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"Authorization": "Bearer hidden-1"}, "Authorization"),
        ({"X-Gateway": "hidden-2"}, "X-Gateway"),
        ({"X-B": "hidden-3", "Authorization": basic_authorization("a", "hidden-4")}, "X-B"),
    ],
)
def test_what_jobmons_client_cannot_send_is_refused(headers: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot send the connection's {named}:") as caught:
        executor_environment(Settings(SERVER, headers=headers), Heartbeat())
    assert "hidden" not in str(caught.value)


def test_a_ca_bundle_is_passed_on_and_no_check_refused(tmp_path: Path) -> None:
    bundle = str(tmp_path / "ca.pem")
    environment = executor_environment(Settings(SERVER, verify=bundle), Heartbeat())
    assert environment["REQUESTS_CA_BUNDLE"] == environment["SSL_CERT_FILE"] == bundle
    with pytest.raises(ConfigError, match="always checks TLS certificates"):
        executor_environment(Settings(SERVER, verify=False), Heartbeat())
    executor_environment(Settings("http://localhost:1", verify=False), Heartbeat())
    with pytest.raises(ConfigError, match="cannot send a client certificate"):
        executor_environment(Settings(SERVER, client_cert=bundle), Heartbeat())


# Which Python


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is all of PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def make_program(file: Path) -> str:
    file.parent.mkdir(exist_ok=True)
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return str(file)


def test_a_configured_python_is_taken(path: Path) -> None:
    make_program(path / "jobmon")
    python = make_program(path / "elsewhere" / "python3.9")
    assert find_python(python) == python


def test_a_configured_python_that_is_missing_is_an_error(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"jobmon_python: '/no/python' is not an executable file"):
        find_python("/no/python")


def test_else_the_python_beside_jobmons_command_is_taken(path: Path) -> None:
    python = make_program(path / "venv" / "python")
    make_program(path / "venv" / "jobmon")
    (path / "jobmon").symlink_to(path / "venv" / "jobmon")
    assert find_python(None) == python


def test_this_python_is_taken_if_it_has_jobmons_client(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = path / "site" / "jobmon" / "client"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    make_program(path / "jobmon")  # a command without a Python beside it
    monkeypatch.syspath_prepend(str(path / "site"))
    try:
        assert find_python(None) == sys.executable
    finally:
        sys.modules.pop("jobmon", None)


def test_a_worker_without_jobmons_client_says_what_to_do(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no Jobmon client on this worker: .* Give jobmon_python"):
        find_python(None)


def test_another_host_has_its_own_way_to_the_server() -> None:
    """A gateway's header and a client certificate are of the way from here."""
    headers = {"Authorization": basic_authorization("me", "secret"), "X-Gateway": "token"}
    settings = Settings(
        "https://jobmon.example.org/api/v3", headers=headers, client_cert="/cert.pem", verify=False
    )
    variables, credentials = jobmon_settings(settings, Heartbeat(), here=False)
    assert credentials == "me:secret"
    assert "secret" not in str(variables)
    assert variables["JOBMON__HTTP__SERVICE_URL"] == "https://jobmon.example.org"
    with pytest.raises(ConfigError, match="X-Gateway"):
        jobmon_settings(settings, Heartbeat(), here=True)
