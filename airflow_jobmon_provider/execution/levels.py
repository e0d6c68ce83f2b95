"""The level of a line of the executor's output, and the line without what Airflow adds anyway.

Airflow gives every line of a task's log a time and a level. A line that brings its own loses them, and is
logged at its own level. Only what a logger certainly wrote counts: the level is in capitals, or in brackets
after a time, and stands in one of the places where loggers put it. "INFO desk is closed" and "Error rate:
0.1" are ordinary text.

A DEBUG line is logged at DEBUG. Airflow shows it if ``[logging] logging_level`` is DEBUG, as everywhere else
in a task's log. Executors write none unless Jobmon's own configuration asks for them.
"""

from __future__ import annotations

import logging
import re

_LEVELS = {
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARNING": logging.WARNING,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
    "CRITICAL": logging.CRITICAL,
    "FATAL": logging.CRITICAL,
}

_TIME = r"\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?\]?\s+"
_LEVEL = rf"(?P<level>{'|'.join(_LEVELS)})\b"
_LEVEL_IN_BRACKETS = rf"\[(?P<level>(?i:{'|'.join(_LEVELS)}))\s*\]"
_NAME = r"(?P<name>[^\W\d][\w.-]*)"
_NAME_IN_BRACKETS = rf"\[{_NAME}\s*\]"
_END = r"\s*[-:|]\s+"

_WITH_TIME = tuple(
    re.compile(_TIME + form)
    for form in (
        # Jobmon 3.6 and later: 2026-11-25 10:00:00,123 [INFO] [jobmon.client] message
        # structlog's console: 2026-11-25T10:00:00Z [info     ] event    [jobmon.client]
        rf"{_LEVEL_IN_BRACKETS}\s+(?:{_NAME_IN_BRACKETS}\s+)?(?:-\s+)?",
        # [jobmon.client] INFO - message; Jobmon 3.4: [jobmon.client] workflow INFO    : message
        rf"{_NAME_IN_BRACKETS}\s+(?:\w+\s+)?{_LEVEL}{_END}",
        rf"-\s+{_NAME}\s+-\s+{_LEVEL}{_END}",  # - jobmon.client - INFO - message
        rf"{_NAME}\s+{_LEVEL}{_END}",  # jobmon.client INFO: message
        # INFO jobmon.client: message; - INFO - message; Airflow: {workflow.py:12} INFO - message
        rf"(?:[-|]\s+|\{{\S+\}}\s+)?{_LEVEL}(?:{_END}|\s+)(?:{_NAME}:\s+)?",
    )
)

_WITHOUT_TIME = tuple(
    re.compile(form)
    for form in (
        rf"{_LEVEL}\s+(?:{_NAME}:|{_NAME_IN_BRACKETS.replace('?P<name>', '?P<bracketed>')}:?)\s+",
        rf"{_LEVEL}:{_NAME}:",  # logging's own default
        rf"{_LEVEL}(?::\s+|\s+-\s+)",  # ERROR: message
        # [ERROR] message; structlog's console, which pads to nine: [error    ] event
        rf"(?=\[[A-Z]+\]|\[[a-z ]{{9}}\]){_LEVEL_IN_BRACKETS}\s+(?:{_NAME_IN_BRACKETS}\s+)?",
    )
)

_PYTHONS_WARNING = re.compile(r"\S.*:\d+: \w*Warning: ")
_TRACEBACK = re.compile(
    r"\s*(?:\+ )?(?:Exception Group )?Traceback \(most recent call last\):"
    r"|Exception (?:in thread|ignored in)\b|Fatal Python error:"
)
_NEXT_TRACEBACK = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_LAST_OF_TRACEBACK = re.compile(r"(?!executor:)[^\W\d][\w.]*(?::|$)")


class LevelReader:
    """Reads the levels of lines in turn: a line without one may belong to the line before it."""

    def __init__(self) -> None:
        self._level = logging.INFO
        self._in_traceback = False

    def read(self, text: str) -> tuple[int, str]:
        """Return the level of a line, and the line as it is logged.

        A traceback is an ERROR. An indented line belongs to the line before it. Anything else without a level
        is INFO.

        :param text: the line, not empty, without its end.
        :returns: a level of ``logging``, and the text without time and level, the logger's name in front.
        """
        found = _prefix(text)
        if found is not None:
            self._level, self._in_traceback = found[0], False
            return found
        if _TRACEBACK.match(text) or text in _NEXT_TRACEBACK:
            self._level, self._in_traceback = logging.ERROR, True
        elif text[0] in " \t":
            pass
        elif self._in_traceback and _LAST_OF_TRACEBACK.match(text):
            self._in_traceback = False
        elif _PYTHONS_WARNING.match(text):
            self._level, self._in_traceback = logging.WARNING, False
        else:
            self._level, self._in_traceback = logging.INFO, False
        return self._level, text


def _prefix(text: str) -> tuple[int, str] | None:
    first = text[0]
    if first == "[":
        forms = _WITH_TIME + _WITHOUT_TIME[-1:]
    elif first in "12":
        forms = _WITH_TIME
    elif first in "DIWECF":
        forms = _WITHOUT_TIME
    else:
        return None
    for form in forms:
        match = form.match(text)
        if match is not None:
            groups = match.groupdict()
            name = groups.get("name") or groups.get("bracketed")
            rest = text[match.end() :]
            return _LEVELS[groups["level"].upper()], f"{name}: {rest}" if name not in (None, "root") else rest
    return None
