"""Starts executor.py as a process of its own whose steps a test can hold and see."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from airflow_jobmon_provider.execution.executor import Exit
from airflow_jobmon_provider.execution.process import EXECUTOR
from dev.jobmon_sandbox import JobmonSandbox, SandboxWorkflow, wait_until

# Runs in the executor (and nowhere else) before it: gates at which it waits for the test.
_PRELUDE = """
import os, pathlib, sys, time

HERE = pathlib.Path(os.environ["EXECUTOR_GATES"])


def gate(name):
    # Say that it is reached, and wait there if the test has closed it.
    (HERE / f"{name}.reached").touch()
    while (HERE / f"{name}.closed").exists():
        time.sleep(0.02)


def wrap(owner, name, before="", after=""):
    inner = getattr(owner, name)

    def wrapped(*args, **kwargs):
        if before:
            gate(before)
        try:
            return inner(*args, **kwargs)
        finally:
            if after:
                gate(after)

    setattr(owner, name, wrapped)


def asked(*, before=None, after=None):
    # Call these with route and body of each request that is sent; what ``after`` returns replaces the reply.
    from jobmon.core.requester import Requester

    inner = Requester._send_request

    def send(self, app_route, message, request_type):
        if before:
            before(app_route, message)
        code, reply = inner(self, app_route, message, request_type)
        other = after(app_route, message, reply) if after else None
        return code, reply if other is None else other

    Requester._send_request = send


def is_peek(route, message):
    return route.endswith("/log_heartbeat") and message["status"] == "G"


def is_move(route, message, status):
    return route.endswith("/update_status") and message["status"] == status


if sys.argv[1:2] != ["--distribute"] and any("workflow-run-id" in each for each in sys.orig_argv):
    exec(os.environ["EXECUTOR_PRELUDE"])
"""

# No registry has a client of 3.6 or later. This gives the installed one the function of those versions, as
# far as it concerns who moves and beats a run and what becomes of exceptions, on top of its own swarm: it
# reads the workflow with a blocking requester, beating in the status that it is given; then it runs in
# asyncio, asks for RUNNING through ``send_request_async``, and swallows most exceptions.
CLIENT_OF_3_6 = """
import asyncio
from types import SimpleNamespace

import jobmon.client.swarm as package
from jobmon.client.swarm.workflow_run import WorkflowRun
from jobmon.core.exceptions import DistributorNotAlive
from jobmon.core.requester import Requester

send_over_the_wire = Requester.send_request


async def send_request_async(self, session, app_route, message, request_type, tenacious=True):
    return await asyncio.to_thread(send_over_the_wire, self, app_route, message, request_type, tenacious)


Requester.send_request_async = send_request_async


class Swarm(WorkflowRun):
    async def move(self, status):
        _, reply = await self.requester.send_request_async(
            session=None,
            app_route=f"/workflow_run/{self.workflow_run_id}/update_status",
            message={"status": status},
            request_type="put",
        )
        if reply["status"] != status:
            raise ValueError(f"Cannot transition to {status}")
        self._status = reply["status"]

    async def orchestrate(self, alive):
        try:
            self.set_initial_fringe()
            await self.move("R")
            while self.active_tasks:
                if not await asyncio.to_thread(alive):
                    raise DistributorNotAlive("Distributor process unexpectedly stopped.")
                self.process_commands()
                await asyncio.sleep(0.5)
                self.synchronize_state()
            await self.move("D" if len(self.tasks) == len(self.done_tasks) else "E")
        except Exception:
            try:
                await self.move("E")
            except ValueError:
                pass
            raise


async def run(swarm, alive):
    try:
        await swarm.orchestrate(alive)
    except DistributorNotAlive:
        raise
    except Exception as error:
        print("Workflow run error:", error)
    return SimpleNamespace(
        final_status=swarm.status,
        total_tasks=len(swarm.tasks),
        done_count=len(swarm.done_tasks),
        failed_count=len(swarm.failed_tasks),
    )


def resume_workflow_run(
    workflow_id, workflow_run_id, distributor_alive, status="B", config=None, timeout=36000, requester=None
):
    swarm = Swarm(workflow_run_id=workflow_run_id, status=status, requester=requester)
    swarm.from_workflow_id(workflow_id)
    return asyncio.run(run(swarm, distributor_alive))


package.resume_workflow_run = resume_workflow_run
"""


class Executor:
    """An executor at work.

    :param prelude: Python to run in its process before it; see ``_PRELUDE`` for what it can use.
    :param closed: names of the gates at which it is to wait.
    :param newer: with a client as of Jobmon 3.6.
    :param lifeline: a file descriptor to give it.
    :param output: where its output goes. Default: a file.
    """

    def __init__(
        self,
        sandbox: JobmonSandbox,
        workflow: SandboxWorkflow,
        folder: Path,
        *,
        prelude: str = "",
        closed: tuple[str, ...] = (),
        newer: bool = False,
        lifeline: int | None = None,
        output: int | None = None,
    ) -> None:
        folder.mkdir()
        self.folder = folder
        for name in closed:
            (folder / f"{name}.closed").touch()
        (folder / "usercustomize.py").touch()
        (folder / "sitecustomize.py").write_text(_PRELUDE)
        arguments = [
            f"--workflow-id={workflow.workflow_id}",
            f"--workflow-run-id={workflow.workflow_run_id}",
            "--cluster-name=multiprocess",
            *([f"--lifeline={lifeline}"] if lifeline is not None else []),
        ]
        with (folder / "output").open("w") as file:
            self.process = subprocess.Popen(
                [str(sandbox.python), str(EXECUTOR), *arguments],
                env={
                    **sandbox.environment(),
                    "PYTHONPATH": str(folder),
                    "EXECUTOR_GATES": str(folder),
                    "EXECUTOR_PRELUDE": (CLIENT_OF_3_6 if newer else "") + prelude,
                },
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file if output is None else output,
                stderr=file,
                pass_fds=[lifeline] if lifeline is not None else [],
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    def wait_at(self, gate: str) -> None:
        """Wait until it reaches a gate."""

        def reached() -> bool:
            assert self.process.poll() is None, self.output
            return (self.folder / f"{gate}.reached").exists()

        wait_until(reached, 60, f"the executor to reach {gate}")

    def open(self, gate: str) -> None:
        (self.folder / f"{gate}.closed").unlink()

    def end(self) -> Exit:
        """Wait for its end and return its exit code."""
        self.process.wait(timeout=60)
        return Exit(self.process.returncode)

    def distributor(self) -> int:
        """Return the process id of its distributor."""
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            if b"--distribute" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        raise AssertionError("it has no distributor")

    def kill(self) -> None:
        """Kill it alone, as the kernel does when there is no memory left."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_group(group: int) -> None:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                os.kill(int(stat.parent.name), signal.SIGKILL)
        except OSError:
            continue
