"""Texts that are no friends of shells, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

HOSTILE = [
    *("$(touch pwned)", "`touch pwned`", "; touch pwned", "&& touch pwned #", "| touch pwned"),
    *("'", '"', "\\", "\n", "\ntouch pwned\n", "END", "\nEND\ntouch pwned\n"),
    *("--wrap=touch pwned", "--", "-", "$HOME", "${IFS}", "~", "*", "!", "%j", "#SBATCH --wrap=x"),
]
_words = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=5)), max_size=4).map("".join)

texts = _words.filter(lambda text: "\0" not in text and _can_be_written(text))
"""Of one line or several."""

lines = texts.filter(str.isprintable)
"""Of what may be a folder's name, or an option's value."""


def _can_be_written(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair
        return False
    return "\r" not in text
