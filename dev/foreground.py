"""Runs what people start in a terminal, such as ``make demo``, so that nothing is left when they end it.

It runs in a process of its own, which can be killed at any moment, and has one folder for its temporary
files. The process in the foreground only waits, and then removes both.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from dev.launcher import Child

PROJECT = Path(__file__).resolve().parent.parent
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
KILLING = 60.0  # seconds that it may take on a busy machine


def run(module: str) -> int:
    """Run a module's ``main()`` until it returns, or until SIGINT (Ctrl-C), SIGTERM or SIGHUP ends it.

    Then every process that it has started is gone, and so are the files that it has put into the temporary
    folder.

    :param module: name of the module. Its ``main()`` finds this process's arguments in ``sys.argv`` and
        returns the exit code.
    :returns: the exit code to leave with: that of ``main()`` or of :func:`rest`; where a signal has ended it
        before that, 128 and the signal's number.
    """
    received: list[int] = []
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, _: received.append(number))
    with tempfile.TemporaryDirectory(prefix="jobmon-dev-", ignore_cleanup_errors=True) as folder:
        program = f"import sys; from {module} import main; sys.exit(main())"
        command = [sys.executable, "-c", program, *sys.argv[1:]]
        child = Child(command, env={**os.environ, "TMPDIR": folder}, cwd=PROJECT)
        while child.alive and not received:
            time.sleep(0.05)
        child.hang_up()
        code = child.wait(KILLING)
    if received:
        name = signal.Signals(received[0]).name
        print(f"\n{name}: everything has been ended, and its files are removed.", file=sys.stderr)
        return code and 128 + received[0]
    return code


def rest(code: int) -> NoReturn:
    """Stay until :func:`run` ends this process: all is done, and a person looks at it.

    :param code: the exit code to leave with.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    signal.sigwait([signal.SIGTERM])
    os._exit(code)
