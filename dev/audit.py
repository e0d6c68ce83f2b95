"""Compare the pinned versions with OSV's list of known vulnerabilities; ``make audit``.

A build without a network is no vulnerability: where the list cannot be reached, that is said, and no more.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PINS = Path(__file__).with_name("constraints.txt")

# Vulnerabilities that do not concern this project: their id, and why not.
EXCEPTIONS: dict[str, str] = {}

# pip-audit ends with the traceback of requests, or with a sentence of its own, and with 1 as for a finding.
_UNREACHABLE = re.compile(
    r"ConnectionError|ConnectTimeout|ReadTimeout|Could not connect|Tunnel connection failed"
)


def audit(options: Sequence[str] = (), pins: Path = PINS) -> int:
    """Return 1 if a pinned version is known to be vulnerable, or if pip-audit cannot tell.

    :param options: more options for pip-audit.
    :param pins: a file of exact versions.
    """
    ignored = [option for number in EXCEPTIONS for option in ("--ignore-vuln", number)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--format", "json"),
            *("--progress-spinner", "off", "--requirement", str(pins), "--no-deps", "--disable-pip"),
            *ignored,
            *options,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        audited = json.loads(done.stdout)["dependencies"]
    except ValueError:
        problem = (done.stderr.strip().splitlines() or ["no output"])[-1]
        if _UNREACHABLE.search(problem):
            print("audit: OSV's list of vulnerabilities cannot be reached, so nothing was checked")
            return 0
        print(f"audit: pip-audit failed with {done.returncode}: {problem}")
        return 1
    for package in audited:
        for found in package.get("vulns", ()):
            fixed = ", ".join(found["fix_versions"]) or "no version"
            print(f"audit: {package['name']} {package['version']}: {found['id']}, fixed in {fixed}")
    print(f"audit: {len(audited)} pinned versions checked")
    return done.returncode


if __name__ == "__main__":
    sys.exit(audit(sys.argv[1:]))
