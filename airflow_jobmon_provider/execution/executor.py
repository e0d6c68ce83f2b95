#!/usr/bin/env python3
"""Executes a Jobmon workflow run that is LINKING, to its end, as Jobmon's own resume command does.

One file that imports the standard library and Jobmon's client only: copied to a submit host, it runs there in
the Python that has Jobmon's client, without Airflow::

    python executor.py --workflow-id 12 --workflow-run-id 34 --cluster-name slurm

It reaches the server as Jobmon's settings there say (``JOBMON__HTTP__SERVICE_URL``, ``JOBMON__CONFIG_FILE``).
Works with Jobmon 3.4 and with 3.6 and later. The last line of its output says how the run ended, and the exit
code is one of :class:`Exit`. Whatever happens, it does not leave a run behind that nobody executes, unless it
is killed: then Jobmon's reaper ends the run once its heartbeat has run out.

The reaper ends runs in LINKING and RUNNING, but none in BOUND, INSTANTIATED or LAUNCHED. So the run stays
LINKING, and is kept alive here, while the distributor starts and the swarm reads the workflow, which takes
minutes for a million tasks. Only when the swarm asks for RUNNING does :meth:`_Run.take` move the run through
the three statuses in between: about a second, in which a host that is lost leaves a run that the reaper
does not see.

Jobmon's distributor runs in a process of its own, this file with ``--distribute``, and ends with the
executor, however that ends.
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import errno
import fcntl
import hashlib
import json
import logging
import os
import pkgutil
import random
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

STARTUP_TIMEOUT = 180  # seconds, as in Jobmon's own command
STOP_TIMEOUT = 5  # seconds that a distributor has to end, when its executor was stopped or has died
COMMIT_TIMEOUT = 10
"""Seconds within which the server shows what it has said (docs/protocol.md, "Replies before the commit")."""
UNKNOWN_TIMEOUT = 3  # seconds after which a run that the server does not know does not exist
TAKEN = b"T"
"""What the executor writes into its lifeline when it takes the run."""
NO_TIMEOUT = (
    10 * 365 * 86400
)  # Jobmon's own limit is ten hours; how long a run may take is Airflow's business

OUTPUT_KEPT = 1 << 20  # bytes of output that are left on disk when nobody can read them any more
_LOOK_AT_OUTPUT = 1.0  # seconds between two looks whether there are more

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_INSIST_AFTER = 2  # seconds until Stopped is raised again, where something has swallowed it
_SPREAD = (0.05, 0.45)  # seconds; see _Run.take


class Exit(enum.IntEnum):
    """Exit codes."""

    DONE = 0
    NOT_DONE = 1
    """The run ended otherwise than DONE."""
    USAGE = 2
    NO_CLIENT = 3
    """This Python has no Jobmon client."""
    NO_CLUSTER = 4
    """Jobmon does not know the cluster, or this client has no plugin for it."""
    NO_DISTRIBUTOR = 5
    """Jobmon's distributor did not start."""
    FAILED = 6
    """The execution was broken off by an error."""
    STOPPED = 7
    """The execution was broken off by a signal, or because who had started it was gone."""
    NOT_TAKEN = 8
    """The run is not LINKING, or another executor was faster, so it is not this executor's."""
    NO_SETUP = 9
    """A command that was to set up the environment failed, before this file was run."""


class Failure(BaseException):
    """The execution cannot go on; the message is one line for the user.

    No ``Exception``: it is raised from under Jobmon's swarm, which would end the run or go on.

    :param code: the exit code.
    """

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


class Stopped(SystemExit):
    """A signal asked the executor to end.

    No ``Exception``: nothing in Jobmon must take it for an error. No ``KeyboardInterrupt``: Jobmon would ask
    on standard input what that means. A ``SystemExit``: asyncio, in which 3.6 and later run, lets it through.
    """


class Ended(NamedTuple):
    """How a run ended.

    :param status: Jobmon's code.
    :param done: how many of its tasks are done.
    :param tasks: how many it has.
    :param failed: how many have failed.
    """

    status: str
    done: int
    tasks: int
    failed: int

    def __str__(self) -> str:
        tally = f"{_named(self.status)}: {self.done} of {self.tasks} tasks done, {self.failed} failed"
        # Where it broke off, tasks may have gone on: the server knows better what became of them.
        return tally if self.status == "D" else f"{tally} when this executor last looked"


class _Owner:
    """The process that started the executor and looks after the run until the executor takes it.

    :param lifeline: one end of a socket whose other end the owner holds; None: there is no owner.
    :param taken_file: a file that is made when the run is taken; None: nobody wants to know.
    """

    def __init__(self, lifeline: int | None, taken_file: str | None = None) -> None:
        self.lifeline = lifeline
        self._taken_file = taken_file
        self.taken_before = taken_file is not None and os.path.exists(taken_file)
        """An executor that this very job has started before has asked for the run, and is dead by now."""
        self.taken = threading.Event()
        """Set once the run is the executor's: just before the server is asked for it."""
        self.exists = lifeline is not None
        if lifeline is not None:
            os.set_inheritable(lifeline, False)
            threading.Thread(target=self._wait_for_death, args=(lifeline,), daemon=True).start()

    def tell_taken(self) -> None:
        """From now on the executor answers for the run, and goes on without the owner."""
        self.taken.set()
        if self._taken_file is not None:
            with contextlib.suppress(OSError), open(self._taken_file, "w"):
                pass
        if self.lifeline is not None:
            with contextlib.suppress(OSError):  # it may be gone
                os.write(self.lifeline, TAKEN)

    def _wait_for_death(self, lifeline: int) -> None:
        with contextlib.suppress(OSError):
            os.read(lifeline, 1)
        if not self.taken.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
        while True:
            _discard_output()
            time.sleep(_LOOK_AT_OUTPUT)


def execute(
    workflow_id: int, workflow_run_id: int, cluster_name: str, owner: _Owner, secrets: str | None = None
) -> Ended:
    """Execute a run to its end.

    :param workflow_id: the workflow.
    :param workflow_run_id: its run, which must be LINKING.
    :param cluster_name: the cluster, by Jobmon's name.
    :param owner: looks after the run until it is taken, if there is one.
    :param secrets: a file with the credentials for the server; None: there is none.
    :returns: how the run ended.
    :raises Failure: it came to nothing.
    :raises Stopped: a signal broke it off.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until the run can be ended
    try:
        from jobmon.core.requester import Requester
    except ImportError as error:
        raise Failure(Exit.NO_CLIENT, f"{sys.executable} has no Jobmon client: {error}") from None
    _log_to_stdout()
    _use_secrets(secrets)
    run = _Run(Requester.from_defaults(), workflow_id, workflow_run_id, owner)
    distributor = _Distributor(cluster_name, workflow_run_id)
    patience = STARTUP_TIMEOUT
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        run.require_linking()
        run.keep_linking()
        _check_cluster(run.requester, cluster_name)
        # It starts while the run is LINKING: one that fails to start leaves a run that can be aborted. It
        # asks for statuses that LINKING does not lead to, and takes no notice of being refused.
        distributor.start()
        _hold_back(run, distributor)
        return _swarm()(run, distributor.alive)
    except BaseException as error:
        _deafen()
        patience = STOP_TIMEOUT if isinstance(error, Stopped) else patience
        run.give_up(error)  # before the distributor is stopped, which may take long
        raise
    finally:
        _deafen()
        distributor.stop(patience)


def _log_to_stdout() -> None:
    try:
        from jobmon.client.logging import configure_client_logging  # 3.6 and later
    except ImportError:
        form = "%(levelname)s %(name)s: %(message)s"
        logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format=form)
        logging.getLogger("jobmon").setLevel(logging.INFO)
    else:
        configure_client_logging()
    logging.getLogger("jobmon.core.requester").setLevel(logging.WARNING)  # else a line for each request


class _Run:
    """The run's status on the server, by Jobmon's own requester."""

    def __init__(self, requester: Any, workflow_id: int, workflow_run_id: int, owner: _Owner) -> None:
        self.requester = requester
        self.workflow_id = workflow_id
        self.workflow_run_id = workflow_run_id
        self._owner = owner
        self._send = requester.send_request  # the original one, see _hold_back
        self._route = f"/workflow_run/{workflow_run_id}"
        self._left: str | None = None  # the status in which it was seen when it was to be LINKING
        self._launched = False

    def peek(self) -> str:
        """Return the status, changing nothing: no run can become REGISTERED."""
        route, message = f"{self._route}/log_heartbeat", {"status": "G", "next_report_increment": 1}
        try:
            _, reply = self._send(route, message, "post", tenacious=False)
        except Exception as error:
            # 3.4 says of an unknown run that the server failed, and would be asked again for minutes.
            if "NoResultFound" in str(error):
                what = f"workflow run {self.workflow_run_id} does not exist"
                raise Failure(Exit.NOT_TAKEN, what) from None
            _, reply = self._send(route, message, "post")
        return str(reply["status"])

    def move(self, status: str) -> str:
        """Ask for a status and return the one that the run has now."""
        _, reply = self._send(f"{self._route}/update_status", {"status": status}, "put")
        return str(reply["status"])

    def require_linking(self) -> None:
        """Raise unless the run is LINKING. One that has just been created may not be there for a moment."""
        deadline = time.monotonic() + UNKNOWN_TIMEOUT
        while True:
            try:
                status = self.peek()
            except Failure:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.5)
                continue
            if status != "L":
                raise self._not_linking(status)
            return

    def _not_linking(self, status: str) -> Failure:
        run = f"workflow run {self.workflow_run_id}"
        if self._owner.taken_before:
            what = f"this job has begun before, and its executor then has left {run} {_named(status)}"
            return Failure(Exit.FAILED, what)
        return Failure(Exit.NOT_TAKEN, f"{run} is {_named(status)}, not LINKING (L)")

    def keep_linking(self) -> None:
        """Keep the run's heartbeat good until it is taken: nothing else may do so that long."""
        from jobmon.core.configuration import JobmonConfig

        config = JobmonConfig()
        interval = config.get_int("heartbeat", "workflow_run_interval")
        good_for = interval * config.get_float("heartbeat", "report_by_buffer")
        message = {"status": "L", "next_report_increment": good_for}

        def beat() -> None:
            pause = 0.0
            while not self._owner.taken.wait(pause):
                pause = interval
                try:
                    _, reply = self._send(f"{self._route}/log_heartbeat", message, "post", tenacious=False)
                except Exception:
                    pause = interval / 3
                    continue
                if reply["status"] != "L" and not self._owner.taken.is_set():
                    self._left = str(reply["status"])
                    return

        threading.Thread(target=beat, daemon=True).start()

    def answer(self, route: str, message: dict[str, Any], distributor: _Distributor) -> dict[str, Any] | None:
        """Answer the swarm in the server's place, as long as the run is not taken.

        :param route: what the swarm asks the server for.
        :param message: what it sends.
        :param distributor: starts no task until the run is taken.
        :returns: the reply; None: the request is to be sent.
        """
        if self._owner.taken.is_set():
            return None
        if self._left is not None:
            raise self._not_taken(self._left)
        if route == f"{self._route}/log_heartbeat":
            return {"status": "L"}  # keep_linking does it
        if route != f"{self._route}/update_status":
            return None
        if message["status"] == "R":
            if not distributor.alive():
                raise Failure(Exit.NO_DISTRIBUTOR, "Jobmon's distributor has ended before the run began")
            self.take()
            distributor.release()
            return None
        return {"status": "B" if message["status"] == "B" else "L"}  # no error of the swarm's ends the run

    def take(self) -> None:
        """Move the run from LINKING to LAUNCHED, unless another executor does.

        The server does not tell which of two executors moved a run: the reply to a move that was refused is
        the same if the run is in that status already. So each looks before it moves, after a random pause:
        the later one then sees that the run has moved on. This is done twice, before BOUND and before
        RUNNING. Both go on only if, both times, both look before either has moved: within some milliseconds.
        On one host, not even then: the first to get here has a lock.

        :raises Failure: another executor has taken the run, or it has ended.
        """
        if not self._is_first_on_this_host():
            what = (
                f"workflow run {self.workflow_run_id} is about to be taken by another executor on this host"
            )
            raise Failure(Exit.NOT_TAKEN, what)
        time.sleep(random.uniform(*_SPREAD))  # noqa: S311
        if (status := self.peek()) != "L":
            raise self._not_taken(status)
        self._owner.tell_taken()
        self._reach("B", lambda: self.move("B"))
        self._reach("IO", lambda: self.move("I"))  # another executor's distributor may have asked for O
        self._reach("O", lambda: self.move("O"))
        time.sleep(random.uniform(*_SPREAD))  # noqa: S311
        self._reach("O", self.peek)
        self._launched = True

    def _is_first_on_this_host(self) -> bool:
        """Whether no other executor on this host is taking the run; none can while this one lives."""
        run = f"{self.requester.url}{self._route}".encode()  # hashed, as it may hold a password
        self._lock = socket.socket(socket.AF_UNIX)
        try:
            self._lock.bind("\0jobmon-executor-" + hashlib.sha256(run).hexdigest())  # no file: Linux's own
        except OSError as error:  # elsewhere there is no such lock
            return error.errno != errno.EADDRINUSE
        return True

    def _reach(self, wanted: str, ask: Callable[[], str]) -> None:
        """Ask until the run is in one of some statuses. What was just said may not be committed yet."""
        deadline = time.monotonic() + COMMIT_TIMEOUT
        behind = "LBIO"[: "LBIO".index(wanted[0])]
        while (status := ask()) in behind:
            if time.monotonic() >= deadline:
                where = f"workflow run {self.workflow_run_id} is still {_named(status)}"
                raise Failure(Exit.FAILED, f"{where}: Jobmon does not move it to {_named(wanted[0])}")
            time.sleep(0.1)
        if status not in wanted:
            raise self._not_taken(status)

    def _not_taken(self, status: str) -> Failure:
        what = f"workflow run {self.workflow_run_id} is {_named(status)} by now, so it is not executed here"
        return Failure(Exit.NOT_TAKEN, what)

    def give_up(self, error: BaseException) -> None:
        """Leave no run behind that nobody executes.

        A run that another executor has is left alone, and so is one that its owner looks after.

        :param error: what broke the execution off.
        """
        stopped = isinstance(error, Stopped)
        ours = self._owner.taken.is_set()
        if isinstance(error, Failure) and error.code is Exit.NOT_TAKEN:
            ways = {"C": "T", "H": "T"} if ours and not self._launched else {}  # stopped before it began
        elif not ours:
            ways = {} if stopped and self._owner.exists else {"L": "A"}
        else:
            ways = {"L": "A", "B": "E", "I": "E", "O": "E", "C": "T", "H": "T"}
        if self._launched:
            ways["R"] = "S" if stopped else "E"
        with contextlib.suppress(Exception, Failure):
            self._end(ways)

    def _end(self, ways: dict[str, str]) -> None:
        """Move the run as long as there is a way: a move that was broken off may take effect only now."""
        for attempt in range(5):
            now = self.peek() if ways else ""
            if now not in ways:
                return
            moved = self.move(ways[now])
            if moved == ways[now]:
                _say(f"workflow run {self.workflow_run_id} is now {_named(moved)}")
            if not self._owner.taken.is_set():
                return
            time.sleep(0.2 * (attempt + 1))


def _check_cluster(requester: Any, cluster_name: str) -> None:
    from jobmon.core.cluster import Cluster

    if not _is_known(requester, cluster_name):
        known = _known_clusters(requester)
        knows = f"; it knows {', '.join(known)}" if known else ""
        raise Failure(Exit.NO_CLUSTER, f"cluster {cluster_name!r} is unknown to Jobmon{knows}")
    try:
        Cluster.get_cluster(cluster_name).get_distributor()
    except Exception as error:
        raise Failure(Exit.NO_CLUSTER, f"cluster {cluster_name!r} cannot be used: {_line(error)}") from None


def _is_known(requester: Any, cluster_name: str) -> bool:
    from jobmon.core.exceptions import InvalidRequest

    try:
        _, reply = requester.send_request(f"/cluster/{quote(cluster_name, safe='')}", {}, "get")
    except InvalidRequest:
        return False
    return bool(reply.get("cluster"))


def _known_clusters(requester: Any) -> list[str]:
    """Return the clusters that both Jobmon and this client's plugins know.

    No route of Jobmon's lists clusters, so it is asked for those that are named as a plugin is, as most are.
    The plugin "dummy" is left out: with it, tasks are DONE without having run.
    """
    try:
        import jobmon.plugins

        names = sorted(module.name for module in pkgutil.iter_modules(jobmon.plugins.__path__))
        return [name for name in names if name != "dummy" and _is_known(requester, name)]
    except Exception:  # that the cluster is unknown is what matters
        return []


class _Distributor:
    """Jobmon's distributor, in a process of its own that ends with this one.

    What it writes is passed on to our standard error, without the two words by which it says how it fares.

    :param cluster_name: the cluster.
    :param workflow_run_id: whose tasks it starts.
    """

    def __init__(self, cluster_name: str, workflow_run_id: int) -> None:
        program = [sys.executable, os.path.abspath(__file__), "--distribute"]
        self._command = [*program, cluster_name, str(workflow_run_id)]
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = b""
        self._ready = threading.Event()

    def start(self) -> None:
        """Start it, and return once it says that it is alive.

        :raises Failure: it does not.
        """
        from jobmon.client.workflow import DistributorContext
        from jobmon.core.exceptions import DistributorStartupTimeout

        environment = dict(os.environ)
        entry_point = DistributorContext.derive_jobmon_command_from_env()
        if entry_point is not None:  # as Jobmon does for workers in a container
            environment["JOBMON__DISTRIBUTOR__WORKER_NODE_ENTRY_POINT"] = f'"{entry_point}"'
        # Its standard input is its lifeline: only this process holds the other end.
        self._process = subprocess.Popen(  # noqa: S603  # a list, never a shell
            self._command, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        reader.start()
        deadline = time.monotonic() + STARTUP_TIMEOUT
        while not self._ready.wait(0.1):
            if not self.alive() or time.monotonic() >= deadline:
                reader.join(1)  # no longer: what it has started may hold its end open
                error = DistributorStartupTimeout(self._heard.decode(errors="replace"))
                what = f"Jobmon's distributor did not start: {_line(error)}"
                raise Failure(Exit.NO_DISTRIBUTOR, what)

    def alive(self) -> bool:
        """Whether the process is."""
        return self._process is not None and self._process.poll() is None

    def release(self) -> None:
        """Let it start tasks. Until then it only lives: the tasks of the run may be another executor's."""
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has died; the swarm will see it
            os.write(self._process.stdin.fileno(), b"G")

    def stop(self, patience: float) -> None:
        """Stop it, if it was started.

        :param patience: seconds that it has to end by itself.
        """
        if self._process is None or not self.alive():
            return
        self._process.terminate()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            _kill_all(self._process.pid)
            self._process.wait()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        while written := os.read(process.stderr.fileno(), 65536):
            if not self._ready.is_set():
                self._heard = (self._heard + written)[-65536:]
                if b"ALIVE" in self._heard:
                    self._ready.set()
            # Whatever becomes of our own standard error: a distributor that nobody reads would stop.
            with contextlib.suppress(OSError, AttributeError, ValueError):
                sys.stderr.buffer.write(written.replace(b"ALIVE", b"").replace(b"SHUTDOWN", b""))
                sys.stderr.flush()


def _distribute(cluster_name: str, workflow_run_id: str) -> None:
    """Be Jobmon's distributor: idle until the executor has the run, and ended with the executor."""
    lifeline = os.dup(0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)  # the tasks must not read it
    released = threading.Event()

    def follow_executor() -> None:
        if os.read(lifeline, 1):
            released.set()
            os.read(lifeline, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_TIMEOUT)
        _kill_all(os.getpid())

    threading.Thread(target=follow_executor, daemon=True).start()
    from jobmon.distributor.cli import main as distribute
    from jobmon.distributor.distributor_service import DistributorService

    refresh = DistributorService.refresh_status_from_db  # the first thing that it does for each kind of work

    def refresh_status_from_db(self: Any, status: str) -> Any:
        released.wait()
        return refresh(self, status)

    DistributorService.refresh_status_from_db = refresh_status_from_db
    distribute(f"start --cluster_name {shlex.quote(cluster_name)} --workflow_run_id {workflow_run_id}")


def _kill_all(pid: int) -> None:
    """Kill a process and all that it has started, as Jobmon does with its distributor."""
    import psutil  # type: ignore[import-untyped]  # Jobmon needs it

    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def _hold_back(run: _Run, distributor: _Distributor) -> None:
    """Let the swarm's own moves and beats pass :meth:`_Run.answer` first.

    This is done to Jobmon's class, not to one requester, as not all of a swarm uses the one that it is given.
    """
    from jobmon.core.requester import Requester

    send = Requester.send_request

    def send_request(
        self: Any, app_route: str, message: dict[str, Any], request_type: str, tenacious: bool = True
    ) -> Any:
        reply = run.answer(app_route, message, distributor)
        return send(self, app_route, message, request_type, tenacious) if reply is None else (200, reply)

    Requester.send_request = send_request
    if not hasattr(Requester, "send_request_async"):  # before 3.6
        return
    send_async = Requester.send_request_async

    async def send_request_async(
        self: Any,
        session: Any,
        app_route: str,
        message: dict[str, Any],
        request_type: str,
        tenacious: bool = True,
    ) -> Any:
        reply = run.answer(app_route, message, distributor)
        if reply is not None:
            return 200, reply
        return await send_async(self, session, app_route, message, request_type, tenacious)

    Requester.send_request_async = send_request_async


def _swarm() -> Callable[[_Run, Callable[[], bool]], Ended]:
    try:
        from jobmon.client.swarm import resume_workflow_run  # noqa: F401
    except ImportError:
        return _run_swarm_of_3_4
    return _run_swarm


def _run_swarm(run: _Run, alive: Callable[[], bool]) -> Ended:
    """Jobmon 3.6 and later."""
    from jobmon.client.swarm import resume_workflow_run

    result = resume_workflow_run(
        workflow_id=run.workflow_id,
        workflow_run_id=run.workflow_run_id,
        distributor_alive=alive,
        status="L",
        timeout=NO_TIMEOUT,
    )
    ended = Ended(result.final_status, result.done_count, result.total_tasks, result.failed_count)
    if ended.status not in "DESAT":  # it has logged an error, and returned as if there were none
        raise Failure(Exit.FAILED, f"Jobmon's swarm broke off in {ended}")
    return ended


def _run_swarm_of_3_4(run: _Run, alive: Callable[[], bool]) -> Ended:
    from jobmon.client.swarm.workflow_run import WorkflowRun

    swarm = WorkflowRun(workflow_run_id=run.workflow_run_id, status="L")
    swarm.from_workflow_id(run.workflow_id)
    swarm.run(alive, seconds_until_timeout=NO_TIMEOUT)
    return Ended(swarm.status, len(swarm.done_tasks), len(swarm.tasks), len(swarm.failed_tasks))


_NAMES = {
    "G": "REGISTERED",
    "L": "LINKING",
    "B": "BOUND",
    "I": "INSTANTIATED",
    "O": "LAUNCHED",
    "R": "RUNNING",
    "D": "DONE",
    "E": "ERROR",
    "S": "STOPPED",
    "A": "ABORTED",
    "C": "COLD_RESUME",
    "H": "HOT_RESUME",
    "T": "TERMINATED",
}


def _named(status: Any) -> str:
    return f"{_NAMES.get(status, 'UNKNOWN')} ({status})"


def _line(error: BaseException) -> str:
    """Return an error as one line of bounded length: its kind and the last thing it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1][:500] if lines else "no message"
    # Jobmon's errors quote the server's address. The same as in client/redaction.py.
    text = re.sub(r"//[^/?#\s]*@", "//***@", text)
    return f"{type(error).__name__}: {''.join(c if c.isprintable() else ' ' for c in text)}"


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # who had started us may be gone
        print(f"executor: {text}", flush=True)


def _discard_output() -> None:
    """Empty our standard output if it is the owner's file, which the owner has left: else it fills the disk.

    That is a file without a name, opened for appending. Nothing else is touched, least of all a user's file.
    """
    with contextlib.suppress(OSError):
        about = os.fstat(1)
        appended = fcntl.fcntl(1, fcntl.F_GETFL) & os.O_APPEND
        is_nameless = stat.S_ISREG(about.st_mode) and about.st_nlink == 0
        if is_nameless and appended and about.st_size > OUTPUT_KEPT:
            os.ftruncate(1, 0)


def _stop_on_signals() -> None:
    """Raise :class:`Stopped` at a signal; again after a while, until :func:`_deafen` is called.

    Python throws away what is raised in a finalizer, and libraries may catch what they should not.
    """
    names = {number: number.name for number in _SIGNALS}

    def stop(number: int, _: Any) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # once is enough
        names[signal.SIGALRM] = names[signal.Signals(number)]
        signal.alarm(_INSIST_AFTER)
        raise Stopped(names[signal.SIGALRM])

    for each in (*_SIGNALS, signal.SIGALRM):
        signal.signal(each, stop)


def _deafen() -> None:
    """Take no more notice of signals: what follows must not be broken off."""
    for each in (*_SIGNALS, signal.SIGALRM):
        signal.signal(each, signal.SIG_IGN)


def _use_secrets(path: str | None) -> None:
    """Have Jobmon's client send credentials that its environment does not hold.

    They are the host's own, where its configuration file has some for the same server, and else those of the
    file, which go to no other server than the one it names.

    :param path: the file, which is removed at once; None: there is none.
    :raises Failure: it is gone, as another process of this job has read it before.
    """
    name = "JOBMON__HTTP__SERVICE_URL"
    server = os.environ.get(name, "")
    own = _configured_credentials(name, server)
    given = _take(path) if path is not None else {}
    if server and "@" not in server:
        credentials = own or (given.get("credentials") if given.get("server") == server else None)
        if credentials:
            scheme, separator, host = server.partition("://")
            os.environ[name] = f"{scheme}{separator}{credentials}@{host}"


def _take(path: str) -> dict[str, str]:
    try:
        with open(path) as file:
            secrets: dict[str, str] = json.load(file)
        os.unlink(path)
    except FileNotFoundError:
        what = "the credentials for Jobmon are gone: this job has begun before, and read them then"
        raise Failure(Exit.FAILED, what) from None
    return secrets


def _configured_credentials(name: str, server: str) -> str:
    """Return login and password that Jobmon's configuration file has for a server; empty: none."""
    configured = ""
    environment = os.environ.pop(name, None)
    with contextlib.suppress(Exception):  # there is no such file, or it names no server
        from jobmon.core.configuration import JobmonConfig

        configured = str(JobmonConfig().get("http", "service_url"))
    if environment is not None:
        os.environ[name] = environment
    scheme, separator, rest = configured.partition("://")
    credentials, at, host = rest.rpartition("@")
    return credentials if at and f"{scheme}{separator}{host}".rstrip("/") == server.rstrip("/") else ""


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a positive integer, not {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Execute the run that the arguments name; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workflow-id", type=_positive, required=True)
    parser.add_argument("--workflow-run-id", type=_positive, required=True, help="a run that is LINKING")
    parser.add_argument("--cluster-name", required=True, help="the cluster, by Jobmon's name")
    parser.add_argument(
        "--secrets", help="a file with the credentials for the server, which is removed when it is read"
    )
    parser.add_argument("--taken-file", help="a file to be made when the run is taken")
    parser.add_argument(
        "--lifeline", type=int, help="a file descriptor; at its end-of-file, end unless the run is taken"
    )
    arguments = parser.parse_args(argv)
    # The distributor and the tasks' processes look for Jobmon's commands beside the client's Python.
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
    run, workflow, cluster = arguments.workflow_run_id, arguments.workflow_id, arguments.cluster_name
    who = f"workflow run {run} of workflow {workflow}"
    started = time.monotonic()
    try:
        _stop_on_signals()
        _say(f"executing {who} on cluster {cluster!r}")
        owner = _Owner(arguments.lifeline, arguments.taken_file)
        ended = execute(workflow, run, cluster, owner, arguments.secrets)
        code = Exit.DONE if ended.status == "D" else Exit.NOT_DONE
        _say(f"{who} ended {ended}, after {time.monotonic() - started:.0f} s")
    except Failure as failure:
        code = failure.code
        _say(str(failure))
    except Stopped as stopped:
        code = Exit.STOPPED
        _say(f"the execution of {who} was stopped by {stopped}")
    except Exception as error:
        code = Exit.FAILED
        _say(f"{who} was broken off: {_line(error)}")
    return code


def _exit(code: int) -> None:
    """End with this code, also where what is left to be written cannot be."""
    for each, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if each is not None:
                each.flush()
        except (OSError, ValueError):
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), descriptor)  # else Python would end with 120
    sys.exit(code)


if __name__ == "__main__":
    # This file's folder is the provider's: its modules are not Jobmon's.
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))]
    if sys.argv[1:2] == ["--distribute"]:
        _distribute(*sys.argv[2:4])
    else:
        _exit(main())
