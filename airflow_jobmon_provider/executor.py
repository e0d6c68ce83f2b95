#!/usr/bin/env python3
"""Executes a Jobmon workflow run that is LINKING, to its end, as Jobmon's own resume command does.

One file that imports the standard library and Jobmon's client only: copied to a submit host, it runs there in
the Python that has Jobmon's client, without Airflow::

    python executor.py --workflow-id 12 --workflow-run-id 34 --cluster-name slurm

It reaches the server as Jobmon's settings there say (``JOBMON__HTTP__SERVICE_URL``, ``JOBMON__CONFIG_FILE``).
Works with Jobmon 3.4 and with 3.6 and later. The last line of its output says how the run ended, and the exit
code is one of :class:`Exit`. Whatever happens, it does not leave a run behind that nobody executes, unless it
is killed: then Jobmon's reaper ends the run once its heartbeat has run out.
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import logging
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

STARTUP_TIMEOUT = 180  # seconds, as in Jobmon's own command
NO_TIMEOUT = (
    10 * 365 * 86400
)  # Jobmon's own limit is ten hours; how long a run may take is Airflow's business

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


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
    """The run is not LINKING, so it is not this executor's."""


class Failure(Exception):
    """The execution cannot go on; the message is one line for the user.

    :param code: the exit code.
    """

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


class Stopped(BaseException):
    """A signal asked the executor to end. No ``Exception``: nothing in Jobmon must take it for an error."""


def execute(
    workflow_id: int, workflow_run_id: int, cluster_name: str, taken: threading.Event, *, has_owner: bool
) -> str:
    """Execute a run to its end.

    :param workflow_id: the workflow.
    :param workflow_run_id: its run, which must be LINKING.
    :param cluster_name: the cluster, by Jobmon's name.
    :param taken: set once the run is BOUND.
    :param has_owner: somebody else looks after the run until it is taken.
    :returns: the line that says how the run ended, after ``ended``; its first word is the status.
    :raises Failure: it came to nothing.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until the run can be ended
    try:
        from jobmon.client.workflow import DistributorContext
        from jobmon.core.requester import Requester
    except ImportError as error:
        raise Failure(Exit.NO_CLIENT, f"{sys.executable} has no Jobmon client: {error}") from None
    _log_to_stdout()
    run = _Run(Requester.from_defaults(), workflow_id, workflow_run_id)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        if (status := run.peek()) != "L":
            raise Failure(
                Exit.NOT_TAKEN, f"workflow run {workflow_run_id} is {_named(status)}, not LINKING (L)"
            )
        _check_cluster(run.requester, cluster_name)
        # The distributor starts while the run is LINKING. It asks for statuses that LINKING does not lead to
        # and takes no notice of being refused, so one that fails to start leaves a run that can be aborted.
        with _distributor(DistributorContext(cluster_name, workflow_run_id, STARTUP_TIMEOUT)) as alive:
            return _swarm()(run, alive, taken)
    except Stopped:
        if taken.is_set() or not has_owner:
            run.end("S")
        raise
    except BaseException as error:
        if not (isinstance(error, Failure) and error.code is Exit.NOT_TAKEN):
            run.end("E")
        raise


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

    def __init__(self, requester: Any, workflow_id: int, workflow_run_id: int) -> None:
        self.requester = requester
        self.workflow_id = workflow_id
        self.workflow_run_id = workflow_run_id
        self._route = f"/workflow_run/{workflow_run_id}"

    def peek(self) -> str:
        """Return the status, changing nothing: no run can become REGISTERED."""
        route, message = f"{self._route}/log_heartbeat", {"status": "G", "next_report_increment": 1}
        try:
            _, reply = self.requester.send_request(route, message, "post", tenacious=False)
        except Exception as error:
            # 3.4 says of an unknown run that the server failed, and would be asked again for minutes.
            if "NoResultFound" in str(error):
                what = f"workflow run {self.workflow_run_id} does not exist"
                raise Failure(Exit.NOT_TAKEN, what) from None
            _, reply = self.requester.send_request(route, message, "post")
        return str(reply["status"])

    def move(self, status: str) -> str:
        """Ask for a status and return the one that the run has now."""
        _, reply = self.requester.send_request(f"{self._route}/update_status", {"status": status}, "put")
        return str(reply["status"])

    def end(self, status: str) -> None:
        """Leave no run behind that nobody executes.

        :param status: for a run that is RUNNING: E or S. Jobmon allows one way out of every other status.
        """
        with contextlib.suppress(Exception):
            now = self.peek()
            wanted = {"L": "A", "B": "E", "I": "E", "O": "E", "R": status, "C": "T", "H": "T"}.get(now)
            if wanted:
                _say(f"workflow run {self.workflow_run_id} is now {_named(self.move(wanted))}")


def _check_cluster(requester: Any, cluster_name: str) -> None:
    from jobmon.core.cluster import Cluster
    from jobmon.core.exceptions import InvalidRequest

    try:
        _, reply = requester.send_request(f"/cluster/{quote(cluster_name, safe='')}", {}, "get")
    except InvalidRequest:
        reply = {}
    if not reply.get("cluster"):
        raise Failure(Exit.NO_CLUSTER, f"cluster {cluster_name!r} is unknown to Jobmon")
    try:
        Cluster.get_cluster(cluster_name).get_distributor()
    except Exception as error:
        raise Failure(Exit.NO_CLUSTER, f"cluster {cluster_name!r} cannot be used: {_line(error)}") from None


@contextlib.contextmanager
def _distributor(context: Any) -> Iterator[Callable[[], bool]]:
    """Start Jobmon's distributor and stop it at the end; pass what it writes on to our standard error.

    Jobmon 3.4 waits for its first word without a time limit and takes any other word, such as a warning of
    Python's, for a failure. Later, nobody reads what it writes, so that it would stop once the pipe is full.
    """
    warnings = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    watchdog = threading.Timer(STARTUP_TIMEOUT, lambda: context.process.kill())
    watchdog.daemon = True
    watchdog.start()
    try:
        context.__enter__()
    except Exception as error:
        raise Failure(Exit.NO_DISTRIBUTOR, f"Jobmon's distributor did not start: {_line(error)}") from None
    finally:
        watchdog.cancel()
        if warnings is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = warnings
    stopping = threading.Event()
    reader = threading.Thread(target=_forward, args=(context.process.stderr.fileno(), stopping), daemon=True)
    reader.start()
    try:
        yield context.alive
    finally:
        stopping.set()
        reader.join()
        if context.alive():  # else it would wait for minutes, for what the dead one has left behind
            context.__exit__(None, None, None)


def _forward(source: int, stopping: threading.Event) -> None:
    while not stopping.is_set():
        if select.select([source], [], [], 0.2)[0]:
            try:
                written = os.read(source, 65536)
            except BlockingIOError:  # Jobmon 3.6 and later make the pipe non-blocking
                continue
            if not written:
                return
            sys.stderr.buffer.write(written)
            sys.stderr.flush()


def _swarm() -> Callable[[_Run, Callable[[], bool], threading.Event], str]:
    try:
        from jobmon.client.swarm import resume_workflow_run  # noqa: F401
    except ImportError:
        return _run_swarm_of_3_4
    return _run_swarm


def _run_swarm(run: _Run, alive: Callable[[], bool], taken: threading.Event) -> str:
    """Jobmon 3.6 and later."""
    from jobmon.client.swarm import resume_workflow_run

    if (status := run.move("B")) != "B":
        raise Failure(Exit.NOT_TAKEN, f"workflow run {run.workflow_run_id} is {_named(status)} by now")
    taken.set()
    run.move("I")  # in the distributor's place: it asked for these while the run was LINKING
    run.move("O")
    result = resume_workflow_run(
        workflow_id=run.workflow_id,
        workflow_run_id=run.workflow_run_id,
        distributor_alive=alive,
        status="B",
        timeout=NO_TIMEOUT,
    )
    counts = f"{result.done_count} of {result.total_tasks} tasks done, {result.failed_count} failed"
    return f"{_named(result.final_status)}: {counts}"


def _run_swarm_of_3_4(run: _Run, alive: Callable[[], bool], taken: threading.Event) -> str:
    from jobmon.client.swarm.workflow_run import WorkflowRun

    swarm = WorkflowRun(workflow_run_id=run.workflow_run_id, status="L")
    swarm.from_workflow_id(run.workflow_id)  # beats while it reads the tasks, then moves the run to BOUND
    taken.set()
    run.move("I")
    run.move("O")
    swarm.run(alive, seconds_until_timeout=NO_TIMEOUT)
    done, failed = len(swarm.done_tasks), len(swarm.failed_tasks)
    return f"{_named(swarm.status)}: {done} of {len(swarm.tasks)} tasks done, {failed} failed"


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
    text = re.sub(r"//[^/?#\s]*@", "//***@", text)  # Jobmon's errors quote the server's address
    return f"{type(error).__name__}: {''.join(c if c.isprintable() else ' ' for c in text)}"


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # who had started us may be gone
        print(f"executor: {text}", flush=True)


def _stop_on_signals() -> None:
    def stop(number: int, _: Any) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # once is enough; what follows must not be broken off
        raise Stopped(signal.Signals(number).name)

    for each in _SIGNALS:
        signal.signal(each, stop)


def _end_with(lifeline: int, taken: threading.Event) -> None:
    """End this process when the pipe is closed by the death of who started us, unless the run is taken."""

    def wait() -> None:
        os.read(lifeline, 1)
        if not taken.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


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
        "--lifeline", type=int, help="a file descriptor; at its end-of-file, end unless the run is taken"
    )
    arguments = parser.parse_args(argv)
    taken = threading.Event()
    _stop_on_signals()
    if arguments.lifeline is not None:
        os.set_inheritable(arguments.lifeline, False)
        _end_with(arguments.lifeline, taken)
    # The distributor and the tasks' processes look for Jobmon's commands beside the client's Python.
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
    who = f"workflow run {arguments.workflow_run_id} of workflow {arguments.workflow_id}"
    _say(f"executing {who} on cluster {arguments.cluster_name!r}")
    started = time.monotonic()
    try:
        ended = execute(
            arguments.workflow_id,
            arguments.workflow_run_id,
            arguments.cluster_name,
            taken,
            has_owner=arguments.lifeline is not None,
        )
        code = Exit.DONE if ended.startswith("DONE") else Exit.NOT_DONE
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


if __name__ == "__main__":
    sys.exit(main())
