"""An executor's output in the log and on the worker's disk, written by processes that are real."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_jobmon_provider.client.heartbeat import Heartbeat
from airflow_jobmon_provider.client.redaction import Secrets
from airflow_jobmon_provider.client.settings import Settings, basic_authorization
from airflow_jobmon_provider.execution import output, output_file
from airflow_jobmon_provider.execution.environment import executor_environment
from airflow_jobmon_provider.execution.executor import OUTPUT_KEPT
from airflow_jobmon_provider.execution.process import EXECUTOR, Execution
from airflow_jobmon_provider.execution.watching import ExecutorEnded
from dev.jobmon_sandbox import wait_until
from tests.execution.conftest import group_members
from tests.execution.programs import Lines, run

SERVER = "https://jobmon.example.org:8070/api/v3"
SECRETS = Secrets({"Authorization": basic_authorization("me", "p@ss word")})
MEGABYTE = 1 << 20

# For programs: write bytes at once, and wait until the worker says that it has seen them.
STEPS = """
import os, sys, time
lifeline = int(sys.argv[-1])
def write(*pieces):
    for piece in pieces:
        os.write(1, piece)
        os.read(lifeline, 1)
"""


def finish(execution: Execution) -> None:
    with pytest.raises(ExecutorEnded):
        execution.wait(60)
    execution.stop()


def log_of(program: str, secrets: Secrets = SECRETS) -> Lines:
    """Run a program that writes in steps: each piece is read by itself."""
    execution, log = run(STEPS + program, secrets=secrets)
    read = 0
    while is_at_work(execution, 0.02):
        if execution._output.read_up_to > read:
            read = execution._output.read_up_to
            with contextlib.suppress(BrokenPipeError):  # it may just have ended
                execution._lifeline.send(b"x")
    execution.stop()
    return log


def is_at_work(execution: Execution, seconds: float) -> bool:
    """Let it write for so many seconds; return whether it still can."""
    try:
        execution.wait(seconds)
    except ExecutorEnded:
        return False
    return True


# In the log


def test_levels_of_pythons_logging_are_airflows_and_a_traceback_is_an_error() -> None:
    program = """
import logging
logging.basicConfig(stream=sys.stdout, level=logging.DEBUG, format="%(levelname)s %(name)s: %(message)s")
log = logging.getLogger("jobmon.client")
for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
    log.log(level, "level %d", level)
try:
    {}["x"]
except KeyError:
    log.exception("broken")
print("INFO desk is closed", flush=True)
"""
    log = log_of(program)
    found = list(zip(log.levels, log.lines, strict=True))
    levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
    assert found[:5] == [(level, f"jobmon.client: level {level}") for level in levels]
    assert found[5] == (logging.ERROR, "jobmon.client: broken")
    assert found[6] == (logging.ERROR, "Traceback (most recent call last):")
    assert found[-2] == (logging.ERROR, "KeyError: 'x'")
    assert found[-1] == (logging.INFO, "INFO desk is closed")


def test_time_and_level_are_not_told_twice() -> None:
    program = """
import logging
logging.basicConfig(stream=sys.stdout, format="%(asctime)s [%(levelname)s] [%(name)s] %(message)s")
logging.getLogger("jobmon.client").warning("late")
"""
    log = log_of(program)
    assert (log.levels, log.lines) == ([logging.WARNING], ["jobmon.client: late"])


def test_colours_are_taken_out_also_in_pieces() -> None:
    log = log_of(
        r"write(b'\x1b[3', b'2mINFO\x1b', b'[0m a: \x1b]8;;http', b'://x\x1b', b'\\link\x1b]8;;\x07\n')"
    )
    assert log.lines == ["a: link"]


def test_a_progress_bar_is_its_last_state() -> None:
    log = log_of(r"write(*(b'\r%3d%% done' % each for each in range(0, 101, 10)), b'\r\x1b[Kall\r\n')")
    assert log.lines == ["all"]


def test_a_progress_bar_that_goes_on_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "STATE_INTERVAL", 0.3)
    program = r"""
for step in range(10**6):
    os.write(1, b"\r%d steps " % step)
    time.sleep(0.01)
"""
    execution, log = run(STEPS + program)
    try:
        while len(log.lines) < 2:
            execution.wait(0.1)
        steps = [int(line.removesuffix(" steps")) for line in log.lines]
        assert 0 < steps[0] < steps[1]
    finally:
        execution.stop()


def test_text_in_pieces_is_whole_and_a_cut_says_so() -> None:
    log = log_of(r"write('ü→'.encode()[:1], 'ü→'.encode()[1:3], 'ü→'.encode()[3:] + b'\xff\n', b'x' * 20000)")
    assert log.lines[0] == "ü→\N{REPLACEMENT CHARACTER}"
    assert log.lines[1].endswith("x… (16,040 more characters)")


@pytest.mark.parametrize(
    "pieces",
    [
        (b"p@ss", b" word\n"),
        (b"p@ss", b"\x1b[1", b"m word\n"),
        (b"p@ss\r", b" word\n"),
        (b"x" * 3995, b"p@ss", b" word\n"),
        (b"x" * 20000 + b"p@s", b"s word", b"\n"),
    ],
)
def test_a_password_is_hidden_across_pieces_cuts_and_control_characters(pieces: tuple[bytes, ...]) -> None:
    log = log_of(f"write(*{pieces!r})")
    shown = "\n".join(log.lines)
    assert shown
    for part in ("p@s", "ss", "word"):
        assert part not in shown


def test_the_servers_password_is_not_shown() -> None:
    settings = Settings(SERVER, headers={"Authorization": basic_authorization("me", "p@ss word")})
    started, log = run(
        "import os; u = os.environ['JOBMON__HTTP__SERVICE_URL']; print(u, 'p@ss word');"
        " print(repr(u.split(':')[2]))",
        executor_environment(settings, Heartbeat()),
        settings.secrets,
    )
    finish(started)
    assert log.lines[0] == "https://***@jobmon.example.org:8070 ***"
    assert log.lines[1] == "'***@jobmon.example.org'"  # quoted as in an address, with no address around it


# Never done, and never far ahead of who reads it: what is unread when it is stopped is still logged.
FLOODS = """
import os, time
while True:
    os.write(1, (b"x" * 99 + b"\\n") * 1000)
    while os.fstat(1).st_blocks * 512 > 4 << 20: time.sleep(0.001)
"""


def test_a_flood_does_not_keep_the_worker_from_its_other_work() -> None:
    started, log = run(FLOODS)
    try:
        while len(log.lines) < 100_000:
            started.wait(0.1)  # it comes back, though there is always more to read
    finally:
        started.stop()


# On disk


def blocks(descriptor: int) -> int:
    """Return how many bytes a file takes on disk."""
    return os.fstat(descriptor).st_blocks * 512


# Writes 50 MB, but not before the 2 MB before them are off the disk.
WRITES_MUCH = """
import os, time
for _ in range(50):
    os.write(1, (b"x" * 99 + b"\\n") * 10_486)
    while os.fstat(1).st_blocks * 512 > 2 << 20: time.sleep(0.01)
os.write(1, b"the end\\n")
"""


def test_what_has_been_read_is_off_the_disk_while_the_executor_writes() -> None:
    started, log = run(WRITES_MUCH)
    most = 0
    while is_at_work(started, 0.1):
        most = max(most, blocks(started._output.fileno()))
    started.stop()
    assert log.lines[-1] == "the end"
    assert len(log.lines) == 50 * 10_486 + 1  # nothing is lost
    assert most <= 4 * MEGABYTE


def test_what_was_written_at_once_is_off_the_disk_once_it_is_read() -> None:
    started, log = run("import os\nfor _ in range(50): os.write(1, (b'x' * 99 + b'\\n') * 10_486)")
    with pytest.raises(ExecutorEnded):
        started.wait(60)
    assert started._output.size() > 50 * MEGABYTE
    assert blocks(started._output.fileno()) <= 2 * MEGABYTE
    started.stop()
    assert len(log.lines) == 50 * 10_486


def test_on_a_file_system_that_frees_nothing_all_is_read_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output_file, "_PUNCH_HOLE", 0x4000)  # a mode that no file system has
    started, log = run("import os\nfor _ in range(5): os.write(1, (b'x' * 99 + b'\\n') * 10_486)")
    finish(started)
    assert len(log.lines) == 5 * 10_486
    assert not started._output._can_free


# In the executor's place: what looks after its output when its worker is gone.
ORPHAN = f"""
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("executor", {str(EXECUTOR)!r})
executor = sys.modules["executor"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(executor)
"""


def test_an_executor_whose_worker_has_died_keeps_its_output_small(tmp_path: Path, groups: list[int]) -> None:
    done = tmp_path / "done"
    child = f"""{ORPHAN}
executor._LOOK_AT_OUTPUT = 0.1
owner = executor._Owner(int(sys.argv[-1]))
owner.tell_taken()
print("taken", flush=True)
for _ in range(50):
    os.write(1, b"x" * 1048576)
    while os.fstat(1).st_blocks * 512 > 2 << 20: time.sleep(0.01)
open({str(done)!r}, "w").write("done")
time.sleep(600)
"""
    worker = (
        "import os, signal, sys\n"
        "from tests.execution.programs import run\n"
        f"execution, log = run({child!r})\n"
        "while not log.lines: execution.wait(0.1)\n"
        "print(execution._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[2]
    died = subprocess.run([sys.executable, "-c", worker], cwd=root, timeout=60, stdout=subprocess.PIPE)
    executor = int(died.stdout)
    groups.append(executor)
    wait_until(done.exists, 120, "the executor to have written 50 MB")
    assert os.stat(f"/proc/{executor}/fd/1").st_blocks * 512 <= 4 * MEGABYTE
    assert group_members(executor) == [executor]


@pytest.fixture
def much() -> Iterator[tempfile._TemporaryFileWrapper[bytes]]:
    """A file with a name that holds more than an executor leaves on disk."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x" * (OUTPUT_KEPT + 1))
        file.flush()
        yield file


@pytest.mark.parametrize(
    ("append", "named", "emptied"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_an_executor_empties_no_file_that_may_be_a_users(
    much: tempfile._TemporaryFileWrapper[bytes], append: bool, named: bool, emptied: bool
) -> None:
    flags = os.O_WRONLY | (os.O_APPEND if append else 0)
    descriptor = os.open(much.name, flags)
    if not named:
        os.unlink(much.name)
    try:
        program = ORPHAN + "executor._discard_output()"
        subprocess.run([sys.executable, "-c", program], stdout=descriptor, check=True, timeout=60)
        assert os.fstat(descriptor).st_size == (0 if emptied else OUTPUT_KEPT + 1)
    finally:
        os.close(descriptor)
        if not named:
            open(much.name, "w").close()  # the fixture takes it away


def test_an_executor_without_a_file_for_its_output_goes_on() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        program = ORPHAN + "executor._discard_output()"
        subprocess.run([sys.executable, "-c", program], stdout=theirs.fileno(), check=True, timeout=60)
