"""Fuzz for a while: ``make fuzz``, or ``python -m tests.fuzz 1800``; with a target's name, only that one."""

from __future__ import annotations

import argparse
import random
import sys

from tests.fuzz import runner
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Run every target for its share of the time; return 1 if one of them found something."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("seconds", type=float, nargs="?", default=120.0)
    parser.add_argument("--only", choices=sorted(TARGETS), help="one target")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().getrandbits(32), help="a run's, again"
    )
    arguments = parser.parse_args()
    chosen = {arguments.only: TARGETS[arguments.only]} if arguments.only else TARGETS
    print(f"fuzzing for {arguments.seconds:g} s, seed {arguments.seed}", flush=True)
    whole = sum(target.share for target in chosen.values())
    found = 0
    for name, target in chosen.items():
        done = runner.fuzz(target, arguments.seconds * target.share / whole, arguments.seed)
        print(
            f"{name:12} {done.cases:9,} cases {done.readings:11,} readings {done.seconds:7.1f} s", flush=True
        )
        if done.finding:
            found += 1
            print(f"{name} has found something:\n{done.finding}", file=sys.stderr, flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
