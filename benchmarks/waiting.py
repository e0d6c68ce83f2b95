"""10,000 runs that wait in a cluster's queue, on one real server process: what their heartbeats cost it."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from airflow_jobmon_provider.client.heartbeat import WAITS_LONG, Heartbeat
from benchmarks.figures import Figures
from benchmarks.load import Load, processor_seconds, quantile
from benchmarks.stub import running
from dev.jobmon_sandbox import JobmonSandbox, wait_until

SETTLE = 30.0  # seconds until nothing is left of the change from stub to server


def waiting(figures: Figures, *, quick: bool) -> None:
    """10,000 triggers whose runs have been LINKING for a day; the CPU time of the server, which is Jobmon's.

    The server is the sandbox's, one process, with the log that it keeps of requests and with its database in
    it: SQLite in memory. Jobmon's server takes heartbeats one after the other, each with a transaction, so
    that on a disk it is the disk's time that would be measured.
    The first looks and heartbeats of all triggers are answered by the stub, in the server's place: they are
    what a failover costs, and would take the server minutes. Each trigger has spread its heartbeats over the
    interval by itself by the time that the server takes them. A beat is late if its reply comes more than a
    tenth of the interval after it was due, or not at all.
    """
    count, seconds = (1000, 20) if quick else (10_000, 60)
    interval = Heartbeat(eases=True).after(WAITS_LONG).interval
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory) as folder, JobmonSandbox(directory=Path(folder)) as sandbox:
        sandbox.copy_run(sandbox.make_workflow_in("L"), count - 1)
        sandbox.stop_server()
        with Load("waiting", sandbox.url, {"count": count}, prefix="/api/v2") as load:
            with running(int(sandbox.url.rpartition(":")[2])) as stub:
                wait_until(lambda: stub.order()["runs"] == count, 60, "every run's first heartbeat")
            sandbox.start_server()
            time.sleep(SETTLE)
            began, used = time.time(), processor_seconds(sandbox.server_pid)
            time.sleep(seconds)
            ended, used = time.time(), processor_seconds(sandbox.server_pid) - used
            seen = load.end()
        accepted = _accepted(sandbox, began, ended)
    took = [reply - due for due, reply in seen["beats"] if began <= due < ended - interval / 10]
    late = sum(each > interval / 10 for each in took) + seen["ended"]
    share = used / (ended - began)
    figures.add("waiting_server_cores", share, "cores", at_most=0.6, judged=not quick)
    if accepted:
        figures.add("waiting_server_ms_a_beat", 1000 * used / accepted, "ms")
    rate = accepted / (ended - began)
    figures.add("waiting_beats_per_s", rate, "1/s", at_least=0.95 * count / interval, judged=not quick)
    figures.add("waiting_beat_p95_ms", 1000 * quantile(took, 0.95), "ms")
    figures.add("waiting_late_beats", late, "beats", at_most=0)


def _accepted(sandbox: JobmonSandbox, began: float, ended: float) -> int:
    """Return how many heartbeats the server has accepted in this time, each of a run that is LINKING."""
    beats = [beat for beat in sandbox.requests("/log_heartbeat") if began <= beat.time < ended]
    return sum(beat.reply == {"status": "L"} for beat in beats)
