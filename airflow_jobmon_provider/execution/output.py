"""Turns what an executor writes into lines for a log: bytes in, levels and text out, and no I/O.

The bytes come in pieces of any size. They are decoded and cleared of colours and other escape sequences. A
line that is complete is shown as a terminal shows it: a carriage return or a backspace goes back, and what
comes next overwrites what stands there. So a progress bar is one line, its last state. A line that goes on
for minutes is shown now and then as it stands.

Secrets are hidden before anything is cut or overwritten, also where a piece ends, or a control character
stands, in the middle of one. Memory is bounded, whatever comes.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import NamedTuple

from airflow_jobmon_provider.client.redaction import Secrets, without_userinfo
from airflow_jobmon_provider.execution.levels import LevelReader

LONGEST_LINE = 4000
"""Characters of a line that are shown, with the note that says how many more there were."""

STATE_INTERVAL = 60.0
"""Seconds after which an unfinished line is shown as it stands, and between two of its states."""

_ROOM_FOR_NOTE = 40
_LONGEST_UNFINISHED = 16_384  # characters that are kept as they came, before they go to the terminal
_LONGEST_ESCAPE = 4096
_LONGEST_ADDRESS = 2000
_MOST_CONTROLS = 4096  # among the characters of a secret

_ERASE = "\udc00"  # erase to the end of the line; no character that decoding could yield
_CONTROL = re.compile(f"[\r\b{_ERASE}]")
_CONTROLS = re.compile(f"([\r\b{_ERASE}])")
_RETURNS = re.compile(f"\b{{{LONGEST_LINE},}}|[\r\b]*\r[\r\b]*")

_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # colours, moves of the cursor
    r"|\][^\x07\x1b\n]*(?:\x07|\x1b\\)"  # titles, hyperlinks
    r"|[PX^_][^\x1b\n]*\x1b\\"
    r"|[ -/]+[0-~]|[0-OQ-WYZ\\`-~])"
)
_HALF_AN_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b\n]*\x1b?|[ -/]*)\Z")
_MEANT = {
    "\x1b[K": _ERASE,
    "\x1b[0K": _ERASE,
    "\x1b[J": _ERASE,
    "\x1b[0J": _ERASE,
    "\x1b[2K": "\r" + _ERASE,
    "\x1b[G": "\r",
    "\x1b[0G": "\r",
    "\x1b[1G": "\r",
}
_OPEN_ADDRESS = re.compile(r"/(?:/[^/?#\s]*)?\Z")


class Line(NamedTuple):
    """A line for the log.

    :param level: of ``logging``; :mod:`~airflow_jobmon_provider.execution.levels` says which.
    :param text: what it says, without time and level.
    """

    level: int
    text: str


class OutputReader:
    """Reads an executor's output, piece by piece.

    :param secrets: what must not be shown of it.
    """

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._half_escape = ""
        self._unfinished = ""  # the end of the line that is being written; the rest is on the terminal
        self._terminal = _Terminal(LONGEST_LINE + secrets.longest)
        self._waits_since: float | None = None  # when the unfinished line began, or was last shown
        self._state = ""  # what was last shown of it
        self._levels = LevelReader()

    def read(self, written: bytes, now: float, *, last: bool = False) -> list[Line]:
        """Return the lines that a piece of output completes. Empty lines are left out.

        Of a line that has been unfinished for :data:`STATE_INTERVAL` seconds, its present state is returned,
        without the end that may be half a secret: of a progress bar, its state before the last carriage
        return. Without such an end, what stands there.

        :param written: the piece; it may be empty.
        :param now: seconds, on any clock.
        :param last: nothing will follow.
        """
        text = self._without_escapes(self._decoder.decode(written, last), last)
        complete, newline, rest = text.rpartition("\n")
        texts: list[str] = []
        if newline:
            complete, self._unfinished = self._unfinished + complete, rest
            texts.extend(self._complete(complete))
            self._waits_since, self._state = None, ""
            self._terminal.clear()
        else:
            self._unfinished += rest
        if last:
            texts.append(self._finish(self._unfinished))
            self._unfinished = ""
        else:
            texts.append(self._state_at(now))
        shown = (_printable(each) for each in texts)
        return [Line(*self._levels.read(each)) for each in shown if each]

    def _without_escapes(self, text: str, last: bool) -> str:
        text = self._half_escape + text
        self._half_escape = ""
        if "\x1b" not in text:
            return text
        text = _ESCAPE.sub(lambda match: _MEANT.get(match.group(), ""), text)
        half = _HALF_AN_ESCAPE.search(text, max(0, len(text) - _LONGEST_ESCAPE))
        if half is not None:
            self._half_escape = "" if last else half.group()
            text = text[: half.start()]
        return text

    def _complete(self, text: str) -> Iterator[str]:
        text = text.replace("\r\n", "\n").removesuffix("\r")
        if self._terminal.is_empty and not _CONTROL.search(text):
            # No secret goes over the end of a line, so all lines are looked through at once.
            for line in self._hide(text).split("\n"):
                yield _cut(line.rstrip())
            return
        for line in text.split("\n"):
            yield self._finish(line)

    def _finish(self, text: str) -> str:
        """Return the unfinished line as it is, once the rest of it has come."""
        self._terminal.write(self._hide_across_controls(text))
        shown = self._shown(self._terminal.text)
        self._terminal.clear()
        shown, self._state = ("" if shown == self._state else shown), ""
        return shown

    def _state_at(self, now: float) -> str:
        """Return the state of the unfinished line if it is time for it, else nothing."""
        if self._terminal.is_empty and not self._unfinished:
            return ""
        if self._waits_since is None:
            self._waits_since = now
        is_due = now - self._waits_since >= STATE_INTERVAL
        if is_due or len(self._unfinished) > _LONGEST_UNFINISHED:
            self._move_to_terminal()
        if not is_due:
            return ""
        self._waits_since = now
        before = self._terminal.before_return if self._unfinished else ""
        shown = self._shown(before or self._terminal.text)
        if shown == self._state:
            return ""
        self._state = shown
        return shown

    def _move_to_terminal(self) -> None:
        """Let the terminal have the unfinished line, but for an end that may be half a secret."""
        text = _RETURNS.sub("\r", self._unfinished)
        cut = self._certain(text)
        self._terminal.write(self._hide_across_controls(text[:cut]))
        self._unfinished = text[cut:]

    def _certain(self, text: str) -> int:
        """Return how many characters cannot be part of a secret whose end has not come yet."""
        cut, held = len(text), self._secrets.longest
        while cut and held and len(text) - cut < self._secrets.longest + _MOST_CONTROLS:
            cut -= 1
            held -= text[cut] not in f"\r\b{_ERASE}"
        address = _OPEN_ADDRESS.search(text, max(0, len(text) - _LONGEST_ADDRESS))
        if address is not None:
            cut = min(cut, address.start())
        start = max(0, cut - self._secrets.longest - _LONGEST_ADDRESS)
        whole = self._hide(_CONTROL.sub("", text[start:]))
        while cut > start and whole != "".join(
            self._hide(_CONTROL.sub("", part)) for part in (text[start:cut], text[cut:])
        ):
            cut -= 1  # a whole secret is there, with a part of it on either side
        return cut

    def _hide(self, text: str) -> str:
        return without_userinfo(self._secrets.hide(text))

    def _hide_across_controls(self, text: str) -> str:
        """Hide secrets; where a control character stands in the middle of one, drop all of these."""
        hidden = self._hide(text)
        if not _CONTROL.search(hidden):
            return hidden
        plain = _CONTROL.sub("", hidden)
        hidden_in_plain = self._hide(plain)
        return hidden if hidden_in_plain == plain else hidden_in_plain

    def _shown(self, text: str) -> str:
        """Return a line of the terminal as it is shown: overwriting may have put a secret together."""
        hidden = self._hide(text)
        beyond = self._terminal.width - len(self._terminal.text)
        if beyond > 0 and self._secrets.longest:  # the end may be half of one
            beyond += self._secrets.longest
            hidden = hidden[: -self._secrets.longest]
        return _cut(hidden.rstrip(), max(beyond, 0))


class _Terminal:
    """One line of a terminal, on which each character is one wide.

    :param columns: how many it keeps; it counts all.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self.clear()

    def clear(self) -> None:
        self.text = ""
        self.width = 0  # as far as it was written to
        self.before_return = ""  # the text at the last carriage return
        self._cursor = 0

    @property
    def is_empty(self) -> bool:
        return self.width == 0

    def write(self, text: str) -> None:
        for part in _CONTROLS.split(text):
            if part == "\r":
                self._cursor = 0
                self.before_return = self.text
            elif part == "\b":
                self._cursor = max(self._cursor - 1, 0)
            elif part == _ERASE:
                self.text = self.text[: self._cursor]
                self.width = min(self.width, self._cursor)
            elif part:
                self._put(part)

    def _put(self, text: str) -> None:
        end = self._cursor + len(text)
        room = max(self._columns - self._cursor, 0)
        self.text = self.text[: self._cursor] + text[:room] + self.text[end:]
        self.width = max(self.width, end)
        self._cursor = end


def _cut(text: str, beyond: int = 0) -> str:
    """Return a line of at most :data:`LONGEST_LINE` characters, which says how many there were more.

    :param beyond: characters that have been left out of it already.
    """
    if not beyond and len(text) <= LONGEST_LINE:
        return text
    kept = text[: LONGEST_LINE - _ROOM_FOR_NOTE]
    return f"{kept}… ({len(text) - len(kept) + beyond:,} more characters)"


def _printable(text: str) -> str:
    if text.isprintable() or text.replace("\t", " ").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
