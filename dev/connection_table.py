"""The table of the connection's fields, for the README."""

from __future__ import annotations

from airflow_jobmon_provider.hooks.fields import EXTRA

AIRFLOWS_OWN = (
    ("Host", "Host name, or an address such as `https://jobmon.example.org/path`.", "required"),
    ("Schema", "`http` or `https`, where the host has none.", "`http`"),
    ("Port", "", "the scheme's"),
    ("Login, Password", "HTTP Basic. A password without login is sent as a Bearer token.", "none"),
)


def render() -> str:
    """Return the table as Markdown."""
    rows = [
        ("field", "meaning", "default"),
        ("---", "---", "---"),
        *AIRFLOWS_OWN,
        *((f"extra `{name}`", field.meaning, field.default) for name, field in EXTRA.items()),
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
