"""Runs the benchmark, all parts or those that are named: ``make bench``, ``python -m benchmarks NAME …``."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys

from benchmarks import big_workflow, fleet, real, simulated, startup, submit_host, waiting
from benchmarks.figures import Figures

PARTS = {
    "heartbeat": fleet.heartbeat,
    "fleet": fleet.fleet,
    "burst": fleet.burst,
    "behind_counts": fleet.behind_counts,
    "waiting": waiting.waiting,
    "wait": real.wait,
    "detection": simulated.detection,
    "completion": simulated.completion,
    "requests": simulated.requests,
    "imports": startup.imports,
    "parse": startup.parse,
    "worker": real.worker,
    "submission": submit_host.submission,
    "log_lag": submit_host.log_lag,
    "big_workflow": big_workflow.big_workflow,
}


def main() -> int:
    """Run the parts; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="smaller and shorter, for CI; not for claims")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    logging.disable(logging.INFO)
    figures = Figures()
    for name in arguments.parts or PARTS:
        PARTS[name](figures, quick=arguments.quick)
    loop = os.environ.get("BENCH_LOOP", "asyncio")
    print(f"\nPython {platform.python_version()}, {loop}, {os.cpu_count()} cores, {platform.machine()}\n")
    print(figures.table())
    return 1 if figures.missed else 0


if __name__ == "__main__":
    sys.exit(main())
