"""Triggers on one event loop, beside their peers, against the stub."""

from __future__ import annotations

from statistics import median

from benchmarks.figures import Figures
from benchmarks.load import run_in_a_fresh_process
from benchmarks.stub import running


def heartbeat(figures: Figures, *, quick: bool) -> None:
    """Heartbeats per CPU second: 2,000 triggers that beat once a second, and each peer doing the same.

    Only jobmon_requester and the raw streams beat as fast as they can: they have nothing to wait with.
    """
    rounds, pace = (1, {"settle": 4, "seconds": 4}) if quick else (3, {"settle": 4, "seconds": 5})
    peers = ["aiohttp_session", "session_per_call", "jobmon_requester", "streams"]
    rates: dict[str, list[float]] = {name: [] for name in ["triggers", *peers]}
    with running() as server:
        for _ in range(rounds):
            for peer in peers:
                run = run_in_a_fresh_process(peer, server.url, count=2000, interval=1, **pace)
                rates[peer].append(run["beats_per_cpu_second"])
            server.order(reset=0.0)
            # without samples of the loop's lag, which the peers do not take either
            run = run_in_a_fresh_process("triggers", server.url, count=2000, interval=1, sample=1, **pace)
            rates["triggers"].append(2000 * run["wall"] / run["cpu"])
    for name, values in rates.items():
        figures.add(f"heartbeat_{name}", median(values), "1/CPU-s")

    def ratio(peer: str) -> float:
        pairs = zip(rates["triggers"], rates[peer], strict=True)  # of the same round: the machine is noisy
        return median(ours / theirs for ours, theirs in pairs)

    figures.add("heartbeat_vs_aiohttp", ratio("aiohttp_session"), at_least=0.75)
    figures.add("heartbeat_vs_session_per_call", ratio("session_per_call"), at_least=3)
    figures.add("heartbeat_vs_jobmon_requester", ratio("jobmon_requester"), at_least=10)
    figures.add("heartbeat_vs_streams", ratio("streams"))


def fleet(figures: Figures, *, quick: bool) -> None:
    """10,000 triggers at an interval of 30 s for three minutes.

    A beat is late if it comes more than a tenth of the interval after its time. CPU time and the lag of the
    event loop count from the first second on.
    """
    count, interval, seconds = (1000, 5, 30) if quick else (10_000, 30, 180)
    with running() as server:
        run = run_in_a_fresh_process("triggers", server.url, count=count, interval=interval, seconds=seconds)
        seen = server.order()
        empty = run_in_a_fresh_process(
            "triggers", server.url, count=count, interval=interval, seconds=5, empty=1
        )
    late = sum(gap > 1.1 * interval for gap in seen["gaps"])
    figures.add("fleet_late_beats", late + run["ended"] + (count - seen["runs"]), "beats", at_most=0)
    figures.add("fleet_cores", run["cpu"] / run["wall"], "cores", at_most=0.15, judged=not quick)
    figures.add("fleet_lag_p99_ms", run["lag_p99_ms"], "ms", at_most=50, judged=not quick)
    figures.add("fleet_start_lag_p99_ms", run["start_lag_p99_ms"], "ms", at_most=50, judged=not quick)
    per_trigger = (run["rss_kib"] - empty["rss_kib"]) / count
    figures.add("fleet_kib_per_trigger", per_trigger, "KiB", at_most=12, judged=not quick)
    figures.add("fleet_connections", seen["most_connections"], "connections", at_most=100 + CONTROL)


def behind_counts(figures: Figures, *, quick: bool) -> None:
    """Heartbeats to a server that 500 triggers have asked for counts of tasks, none of which it answers."""
    beats = 20 if quick else 200
    with running() as server:
        server.order(hangs="workflow_status_viz")
        run = run_in_a_fresh_process("beats_behind_counts", server.url, counts=500, beats=beats)
        hanging = server.order()["in_flight"]
    if run["ended"] or hanging < 1:
        raise RuntimeError(f"{hanging} counts hung, and {run['ended']:.0f} ended")
    figures.add("beat_behind_counts_ms", run["wait_max_ms"], "ms", at_most=100)


CONTROL = 1  # the benchmark's own connection, over which it asks


def burst(figures: Figures, *, quick: bool) -> None:
    """Failover: 10,000 triggers start at the same moment, and the server takes 10 ms for each reply."""
    count, interval = (2000, 10) if quick else (10_000, 30)
    with running() as server:
        server.order(reset=0.01)
        run_in_a_fresh_process("triggers", server.url, count=count, interval=interval, seconds=2.2 * interval)
        seen = server.order()
    first = seen["first_beats"]
    figures.add("burst_first_beat_s", first[-1] - first[0], "s", at_most=10)
    figures.add("burst_peak_requests", seen["most_in_flight"], "requests", at_most=100)
    figures.add("burst_missing_runs", count - len(first), "runs", at_most=0)
    start = int(first[-1]) + 1
    rest = [beats for second, beats in seen["by_second"].items() if start < int(second) < start + interval]
    figures.add("burst_second_peak", max(rest) * interval / count, at_most=2)
