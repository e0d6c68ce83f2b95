"""Text from elsewhere, made fit to be shown: short, on one line, without control characters and secrets.

This is the one place that decides what is hidden (docs/rules.md, rule 7): what stands before the host in any
address, and whatever a connection's headers hold. ``execution/executor.py``, which runs without this package,
has the rule about addresses a second time.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

EXCERPT_LENGTH = 200

# Login and password in an address, which other people's messages like to quote.
_USERINFO = re.compile(r"//[^/?#\s]*@")

_TITLE = re.compile(r"<title>([^<]+)<", re.I)

# Characters. Shorter ones turn up in any text by chance, and a user who has one has other worries.
_SHORTEST_SECRET = 6


def excerpt(content: Any, length: int = EXCERPT_LENGTH) -> str:
    """Return the start of what came back, as one line without control characters.

    Credentials in an address are left out.

    :param length: cut after so many characters.
    """
    if isinstance(content, bytes):
        text = content[: 32 * length].decode("utf-8", "replace")
    else:
        try:
            text = str(content)
        except (RecursionError, ValueError):  # nested too deeply; a number of thousands of digits
            text = f"({type(content).__name__} that cannot be shown)"
    start = text[: 8 * length]
    if not start.isprintable():
        start = "".join(c if c.isprintable() else " " for c in start)
    line = " ".join(start.split())
    line = without_userinfo(line)
    return line if len(line) <= length else line[: length - 1] + "…"


def without_userinfo(text: str) -> str:
    """Return a text with ``***`` in place of login and password in each address that it quotes."""
    return _USERINFO.sub("//***@", text)


def excerpt_of_body(text: str) -> str:
    """Return the start of a reply's body; of a web page, which starts with its style, its title.

    :param text: the body, or enough of it.
    """
    title = _TITLE.search(text) if text.lstrip().startswith("<") else None
    return f"(a web page: {excerpt(title.group(1))})" if title else excerpt(text)


def shown(value: Any) -> str:
    """Return a value that a user gave, as it is shown in a message about it."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply; a number of thousands of digits
        text = f"(a {type(value).__name__} that cannot be shown)"
    return excerpt(text)


class Secrets:
    """What is sent in headers and must not be shown, also where a server sends it back to us.

    :param headers: their values are secrets, all of them: nobody can tell which are not.
    :ivar longest: characters of the longest of them, in whatever form.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        forms = {form for value in _secrets_of(headers) for form in _forms(value)}
        long_ones = sorted((form for form in forms if len(form) >= _SHORTEST_SECRET), key=len, reverse=True)
        self.longest = len(long_ones[0]) if long_ones else 0
        self._pattern = re.compile("|".join(map(re.escape, long_ones))) if long_ones else None

    def hide(self, text: str) -> str:
        """Return the text with ``***`` in place of each secret."""
        return text if self._pattern is None else self._pattern.sub("***", text)

    def hide_in(self, reply: Any, body: str) -> Any:
        """Return a decoded JSON reply with ``***`` in place of each secret; the names in it stay.

        :param body: its text: what holds no secret is not looked through.
        """
        if self._pattern is None or self._pattern.search(body) is None:
            return reply
        return self._hidden(reply)

    def _hidden(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list):
            return [self._hidden(each) for each in value]
        if isinstance(value, dict):
            return {key: self._hidden(each) for key, each in value.items()}
        return value


def _secrets_of(headers: Mapping[str, str]) -> Iterator[str]:
    for value in headers.values():
        yield value
        scheme, _, credentials = value.partition(" ")
        if scheme.lower() in ("basic", "bearer"):
            yield credentials
        if scheme.lower() == "basic":
            try:
                login_and_password = base64.b64decode(credentials).decode()
            except (binascii.Error, UnicodeDecodeError):
                continue
            yield login_and_password
            yield login_and_password.partition(":")[2]


def _json(text: str, ascii_only: bool) -> str:
    return json.dumps(text, ensure_ascii=ascii_only)[1:-1]


def _forms(secret: str) -> Iterable[str]:
    """Return a secret as it may stand in JSON, HTML, an address or a Python text."""
    in_json = [_json(secret, each) for each in (True, False)]
    in_json += [form.replace("/", "\\/") for form in in_json]  # as pandas writes it
    return (
        secret,
        *in_json,
        *(
            _json(form, each) for form in in_json for each in (True, False)
        ),  # in a table, which is JSON in JSON
        html.escape(secret),
        quote(secret),
        quote(secret, safe=""),
        repr(secret)[1:-1],
        repr("'" + secret)[2:-1],
    )


NO_SECRETS = Secrets({})
