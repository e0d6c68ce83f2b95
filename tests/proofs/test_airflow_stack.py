"""The stack against what tests and demo rely on, with a real Airflow: nothing is replaced or simulated."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dev import airflow_stack
from dev.airflow_stack import AirflowStack, AirflowStackError

MODULE = '''
"""What the DAGs below defer to; a trigger is imported by its path, so it cannot live in a DAG file."""
import asyncio
from pathlib import Path

from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent


class FileTrigger(BaseTrigger):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def serialize(self):
        return "stack_example.FileTrigger", {"path": self.path}

    async def run(self):
        self.log.info("waiting for %s", self.path)
        while not Path(self.path).exists():
            await asyncio.sleep(0.1)
        yield TriggerEvent("found")

    async def on_kill(self):
        Path(self.path + ".killed").touch()


class FileOperator(BaseOperator):
    template_fields = ("path",)

    def __init__(self, path, **kwargs):
        super().__init__(**kwargs)
        self.path = path

    def execute(self, context):
        self.log.info("before the wait")
        self.defer(trigger=FileTrigger(self.path), method_name="resume")

    def resume(self, context, event):
        self.log.info("after the wait")
        return event
'''

DAGS = """
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import BaseHook, dag, task
from stack_example import FileOperator


@dag(schedule=None)
def simple():
    @task
    def double(number):
        return 2 * number

    @task
    def host():
        return BaseHook.get_connection("somewhere").host

    bash = BashOperator(task_id="bash", bash_command="echo the word is {{ dag_run.conf['word'] }}")
    bash >> double.expand(number=[1, 2]) >> host()


@dag(schedule=None)
def deferring():
    FileOperator(task_id="wait", path="{{ dag_run.conf['path'] }}")


@dag(schedule=None)
def endless():
    BashOperator(task_id="sleep", bash_command="setsid sleep 987654 & touch {{ dag_run.conf['path'] }}; wait")


simple()
deferring()
endless()
"""


def eventually(condition: Callable[[], object], timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def wait_for_log(stack: AirflowStack, run: str, try_number: int = 1) -> None:
    """Wait until the trigger of the deferring DAG is at work."""
    eventually(lambda: "waiting for" in stack.task_log("deferring", run, "wait", try_number))


def processes() -> dict[int, int]:
    """Process id to parent's, without zombies."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found[int(stat.parent.name)] = int(parent)
    return found


def descendants(pid: int) -> set[int]:
    parents = processes()
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family - {pid}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DAGs folder, and beside it a folder for what the DAGs import."""
    files = tmp_path_factory.mktemp("files")
    (files / "dags").mkdir()
    (files / "dags" / "example.py").write_text(DAGS)
    (files / "modules").mkdir()
    (files / "modules" / "stack_example.py").write_text(MODULE)
    return files


def new_stack(files: Path) -> AirflowStack:
    return AirflowStack(
        dags_folder=files / "dags",
        connections={"somewhere": "http://user:secret@example.org"},
        environment={"PYTHONPATH": str(files / "modules")},
    )


@pytest.fixture(scope="module")
def stack(files: Path) -> Iterator[AirflowStack]:
    with new_stack(files) as stack:
        yield stack


def test_a_dag_run_ends_and_shows_its_log(stack: AirflowStack) -> None:
    run = stack.trigger("simple", {"word": "xyzzy"})
    assert stack.wait_for_run("simple", run) == "success"
    assert stack.run_state("simple", run) == "success"
    states = stack.task_states("simple", run)
    assert states == dict.fromkeys(["bash", "double[0]", "double[1]", "host"], "success")
    assert "the word is xyzzy" in stack.task_log("simple", run, "bash")
    assert "Returned value was: 4" in stack.task_log("simple", run, "double", map_index=1)
    assert stack.xcom("simple", run, "double", map_index=1) == 4
    assert stack.xcom("simple", run, "host") == "example.org"
    with pytest.raises(KeyError):
        stack.xcom("simple", run, "host", key="nothing")


def test_deferral_across_a_killed_and_a_restarted_triggerer(stack: AirflowStack, tmp_path: Path) -> None:
    path = tmp_path / "file"
    run = stack.trigger("deferring", {"path": str(path)})
    assert stack.wait_for_task("deferring", run, "wait", ["deferred"]) == "deferred"
    wait_for_log(stack, run)
    for killed in (True, False):
        before = stack.pid("triggerer")
        if killed:
            stack.kill("triggerer")
        stack.restart("triggerer")
        assert stack.pid("triggerer") != before
    path.touch()
    assert stack.wait_for_run("deferring", run) == "success"
    assert not Path(f"{path}.killed").exists()
    log = stack.task_log("deferring", run, "wait")
    assert log.index("before the wait") < log.index("waiting for") < log.index("after the wait")
    assert stack.xcom("deferring", run, "wait") == "found"


def test_a_deferred_task_is_marked_failed_and_cleared(stack: AirflowStack, tmp_path: Path) -> None:
    path = tmp_path / "file"
    run = stack.trigger("deferring", {"path": str(path)})
    stack.wait_for_task("deferring", run, "wait", ["deferred"])
    wait_for_log(stack, run)
    stack.set_task_state("deferring", run, "wait", "failed")
    assert stack.wait_for_run("deferring", run) == "failed"
    eventually(Path(f"{path}.killed").exists)
    with pytest.raises(AirflowStackError, match="ended as failed"):
        stack.wait_for_task("deferring", run, "wait", ["success"])
    path.touch()
    stack.clear_task("deferring", run, "wait")
    assert stack.wait_for_task("deferring", run, "wait", ["success"]) == "success"
    assert "after the wait" in stack.task_log("deferring", run, "wait", try_number=2)


def test_the_id_of_a_trigger_is_never_given_out_again(stack: AirflowStack, tmp_path: Path) -> None:
    """SQLite by itself does so once the row is gone; a triggerer can then take a new trigger for the old."""

    def triggers() -> list[int]:
        with contextlib.closing(sqlite3.connect(stack.directory / "airflow.db")) as connection:
            return [number for (number,) in connection.execute("SELECT id FROM trigger")]

    identities = []
    for _ in range(2):
        run = stack.trigger("deferring", {"path": str(tmp_path / "file")})
        stack.wait_for_task("deferring", run, "wait", ["deferred"])
        identities.append(stack.task_instance("deferring", run, "wait")["trigger"]["id"])
        stack.set_task_state("deferring", run, "wait", "failed")
        eventually(lambda: not triggers())
    assert identities[0] < identities[1]


def test_the_api_server_and_the_scheduler_come_back(stack: AirflowStack) -> None:
    stack.kill("scheduler")
    stack.restart("api-server")
    stack.restart("scheduler")
    assert stack.wait_for_run("simple", stack.trigger("simple", {"word": "back"})) == "success"


def test_a_broken_dag_gives_its_error_until_it_is_mended(stack: AirflowStack, files: Path) -> None:
    broken = files / "dags" / "broken.py"
    broken.write_text("from airflow.sdk import dag\nraise RuntimeError('plugh')  # dag mended\n")
    with pytest.raises(AirflowStackError, match="plugh"):
        stack.trigger("mended")
    assert "plugh" in stack.dag_import_errors()["broken.py"]
    broken.write_text("from airflow.sdk import dag\n@dag(schedule=None)\ndef mended(): pass\nmended()\n")
    eventually(lambda: not stack.dag_import_errors())
    assert stack.wait_for_run("mended", stack.trigger("mended")) == "success"


def test_a_component_that_cannot_start_says_why(files: Path) -> None:
    stack = AirflowStack(
        dags_folder=files / "dags", environment={"AIRFLOW__CORE__EXECUTOR": "NoSuchExecutor"}
    )
    with pytest.raises(AirflowStackError, match="NoSuchExecutor"):
        stack.start()
    assert not stack.directory.exists()


def test_a_second_stack_stops_without_a_trace(stack: AirflowStack, files: Path) -> None:
    ours = descendants(os.getpid())
    with new_stack(files) as second:
        second.start()  # does nothing
        assert (second.url, second.directory) != (stack.url, stack.directory)
        theirs = descendants(os.getpid()) - ours
        assert theirs >= {second.pid(name) for name in second.components}
    second.stop()  # does nothing
    assert not theirs & processes().keys()
    assert not second.directory.exists()
    assert stack.wait_for_run("simple", stack.trigger("simple", {"word": "still here"})) == "success"


def test_nothing_survives_a_parent_that_is_killed(files: Path, tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from dev.airflow_stack import AirflowStack
        dags, modules, flag = sys.argv[1:]
        stack = AirflowStack(
            dags_folder=Path(dags), directory=Path(flag).parent / "stack", environment={"PYTHONPATH": modules}
        )
        stack.start()
        stack.trigger("endless", {"path": flag})
        sys.stdin.read()
    """
    flag = tmp_path / "runs"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(files / "dags"), str(files / "modules"), str(flag)],
        env=os.environ | {"PYTHONPATH": str(Path(airflow_stack.__file__).parents[1])},
        stdin=subprocess.PIPE,
    )
    eventually(lambda: flag.exists() or parent.poll() is not None, timeout=180)
    family = descendants(parent.pid)
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in family]
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert b"sleep\x00987654\x00" in commands
    eventually(lambda: not family & processes().keys())
