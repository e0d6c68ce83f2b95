"""Another user of this machine, who has no rights, and looks for what is none of their business."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

IS_ANOTHER = os.geteuid() == 0 and shutil.which("setpriv") is not None
"""Whether there really is another one: only root can become ``nobody``. Else the user looks at their own
processes' arguments and at what the permissions of files let others read, which a stranger could do at best.
"""

_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
_ARGUMENTS = "/proc/[0-9]*/cmdline"
_ENVIRONMENTS = "/proc/[0-9]*/environ"


def forms_of(login: str, password: str) -> list[str]:
    """Return the texts in which a password may stand somewhere."""
    basic = base64.b64encode(f"{login}:{password}".encode()).decode()
    return [password, quote(password, safe=""), basic]


def run(*command: str, given: str = "", environment: Mapping[str, str] | None = None) -> str:
    """Run a command as a stranger, and return what it writes to both outputs."""
    done = subprocess.run(
        [*(_NOBODY if IS_ANOTHER else ()), *command],
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath), **(environment or {})},
    )
    return done.stdout


def processes_with(texts: Sequence[str]) -> list[str]:
    """Return the files in /proc in which a stranger reads one of these texts."""
    # The texts come on standard input, so that this search does not find itself.
    files = f"{_ARGUMENTS} {_ENVIRONMENTS}" if IS_ANOTHER else _ARGUMENTS
    found = run("/bin/sh", "-c", f"exec grep -lsaF -f - {files}", given="\n".join(texts))
    return found.splitlines()


def readable_below(folder: Path) -> list[str]:
    """Return the files below a folder that a stranger can read."""
    if IS_ANOTHER:
        return run("/bin/sh", "-c", f"find '{folder}' -type f -readable 2>/dev/null").splitlines()
    # All folders on the way to a file have to let others through.
    closed = {each for each in folder.rglob("*") if each.is_dir() and not each.stat().st_mode & 0o001}
    files = (file for file in folder.rglob("*") if file.is_file() and file.stat().st_mode & 0o004)
    return [str(file) for file in files if closed.isdisjoint(file.parents)]
