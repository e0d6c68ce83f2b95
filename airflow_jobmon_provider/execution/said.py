"""What an executor writes, in the task's log, and why it ended: once for all ways to start one."""

from __future__ import annotations

import signal
import time

from airflow_jobmon_provider.client.conversations import Log
from airflow_jobmon_provider.client.redaction import Secrets
from airflow_jobmon_provider.execution.executor import Exit
from airflow_jobmon_provider.execution.output import OutputReader

_OWN = "executor: "  # what the executor's own lines begin with


class Said:
    """Passes an executor's output on to a log, and keeps the last lines of it.

    :param log: gets each line that it writes, as it comes, at the line's own level; see
        :mod:`airflow_jobmon_provider.execution.levels`.
    :param secrets: what must not be shown of these lines: the connection's.
    """

    def __init__(self, log: Log, secrets: Secrets) -> None:
        self._log = log
        self._reader = OutputReader(secrets)
        self._last_line = ""
        self._last_own_line = ""

    def take(self, written: bytes, *, last: bool = False) -> None:
        """Log the lines that the next bytes of its output complete.

        :param last: nothing will follow.
        """
        for level, text in self._reader.read(written, time.monotonic(), last=last):
            self._last_line = text
            if text.startswith(_OWN):
                self._last_own_line = text.removeprefix(_OWN)
            self._log.log(level, "%s", text)  # a signal handler may interrupt this, and stop the executor

    def problem(self, code: int | None, ending: str = "") -> str | None:
        """Return what kept the executor from executing the run to its end, in one line; None: nothing.

        The cause comes first: how it was ended, else the last line of the executor's own, which says why it
        ended. If it could say nothing, how it ended and the last line of its output.

        :param code: its exit code; negative: the signal that killed it; None: not known.
        :param ending: how something else has ended it; empty: nothing has.
        """
        last = f"its last line: {self._last_line}" if self._last_line else "it has written nothing"
        if ending:
            return f"{ending}; {last}"
        if code in (None, Exit.DONE, Exit.NOT_DONE):
            return None
        if code in set(Exit) and self._last_own_line:
            return f"{self._last_own_line} (the executor's exit code: {code:d})"
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        return f"the executor {how}; {last}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
