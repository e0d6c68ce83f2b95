"""What becomes of an executor's output on its way into a log: tables of bytes and lines."""

from __future__ import annotations

import logging

import pytest

from airflow_jobmon_provider.client.redaction import NO_SECRETS, Secrets
from airflow_jobmon_provider.client.settings import basic_authorization
from airflow_jobmon_provider.execution.output import LONGEST_LINE, STATE_INTERVAL, OutputReader

SECRET = "p@ss word"  # noqa: S105  # nobody's
SECRETS = Secrets({"Authorization": basic_authorization("me", SECRET)})
DEBUG, INFO, WARNING = logging.DEBUG, logging.INFO, logging.WARNING
ERROR, CRITICAL = logging.ERROR, logging.CRITICAL


def lines(*pieces: bytes, secrets: Secrets = NO_SECRETS) -> list[tuple[int, str]]:
    reader = OutputReader(secrets)
    found = [line for piece in pieces for line in reader.read(piece, 0.0)]
    found += reader.read(b"", 0.0, last=True)
    return [(line.level, line.text) for line in found]


def texts(*pieces: bytes, secrets: Secrets = NO_SECRETS) -> list[str]:
    return [text for _, text in lines(*pieces, secrets=secrets)]


def bytes_of(written: bytes) -> list[bytes]:
    return [written[at : at + 1] for at in range(len(written))]


# Levels

WITH_LEVEL = [
    # executor.py's own, with a client before 3.6
    ("INFO jobmon.client.workflow: bound", INFO, "jobmon.client.workflow: bound"),
    ("WARNING root: disk full", WARNING, "disk full"),
    (
        "ERROR asyncio: Task exception was never retrieved",
        ERROR,
        "asyncio: Task exception was never retrieved",
    ),
    # Jobmon 3.6 and later: JobmonStructlogEventOnlyFormatter, console_default
    (
        "2026-11-25 10:00:00,123 [INFO] [jobmon.client.swarm] 3 of 9 done",
        INFO,
        "jobmon.client.swarm: 3 of 9 done",
    ),
    ("ERROR [jobmon.core] no answer", ERROR, "jobmon.core: no answer"),
    # Jobmon 3.4: JobmonLoggerConfig
    (
        "2026-11-25 10:00:00 [jobmon.client] workflow WARNING : late",
        WARNING,
        "jobmon.client: late",
    ),
    ("2026-11-25 10:00:00 [jobmon.client] workflow CRITICAL: lost", CRITICAL, "jobmon.client: lost"),
    # structlog's console, with and without time
    ("2026-01-01T00:00:00Z [info     ] event  [logger]", INFO, "event  [logger]"),
    ("2026-01-01 00:00:00 [warning  ] event    key=1", WARNING, "event    key=1"),
    ("2026-01-01T00:00:00.123456Z [critical ] event", CRITICAL, "event"),
    ("[error    ] event    [logger]", ERROR, "event    [logger]"),
    # other usual ones
    ("2026-11-25 10:00:00,123 [jobmon.client] INFO - message", INFO, "jobmon.client: message"),
    ("2026-11-25 10:00:00,123 - my.script - ERROR - message", ERROR, "my.script: message"),
    ("2026-11-25T10:00:00+01:00 - my.script - DEBUG - message", DEBUG, "my.script: message"),
    ("2026-11-25T10:00:00.5Z my.script WARN: message", WARNING, "my.script: message"),
    ("2026-11-25 10:00:00 INFO message: one", INFO, "message: one"),
    ("2026-11-25 10:00:00 | FATAL | message", CRITICAL, "message"),
    ("2026-11-25 10:00:00 - INFO - message", INFO, "message"),
    ("[2026-11-25T10:00:00.123+0000] {taskinstance.py:12} INFO - message", INFO, "message"),
    ("WARNING:root:message", WARNING, "message"),
    ("ERROR:my.script:message", ERROR, "my.script: message"),
    ("ERROR: message", ERROR, "message"),
    ("DEBUG - message", DEBUG, "message"),
    ("[WARNING] message", WARNING, "message"),
    # Python's own warnings
    ("/lib/a b.py:12: DeprecationWarning: old", WARNING, "/lib/a b.py:12: DeprecationWarning: old"),
    ("<string>:1: UserWarning: odd", WARNING, "<string>:1: UserWarning: odd"),
]


@pytest.mark.parametrize(("line", "level", "text"), WITH_LEVEL, ids=[line for line, *_ in WITH_LEVEL])
def test_a_line_that_brings_its_level_is_logged_at_it_without_time_and_level(
    line: str, level: int, text: str
) -> None:
    assert lines(line.encode()) == [(level, text)]


@pytest.mark.parametrize(
    "line",
    [
        "INFO desk is closed",
        "Error rate: 0.1",
        "ERROR rate is 0.1",
        "error: in lower case",
        "WARNINGS: 3",
        "INFORMATION: none",
        "CRITICALLY low: disk",
        "INFO",
        "[info] a label",
        "[Info] a label",
        "[error 12] a label",
        "2026-11-25 10:00:00 36.6 degrees",
        "2026-11-25 10:00:00 info desk opens",
        "2026-11-25 10:00:00 sensor ERROR rate 0.1",
        "2026-11-25: INFO - a date alone",
        "the level is ERROR: not at the beginning",
        "SomeError: without a traceback",
        "executor: executing workflow run 3",
    ],
)
def test_ordinary_text_is_left_as_it_is(line: str) -> None:
    assert lines(line.encode()) == [(INFO, line)]


def test_a_traceback_is_an_error_to_its_last_line() -> None:
    written = b"""\
before
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    f()
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 2, in <module>
my.own.Error
executor: after it
  + Exception Group Traceback (most recent call last):
  |   File "a.py", line 3, in <module>
  | ExceptionGroup: two (2 sub-exceptions)
after it
"""
    found = lines(written)
    assert [level for level, _ in found] == [INFO, *[ERROR] * 8, INFO, *[ERROR] * 3, INFO]
    assert [text for _, text in found] == [line for line in written.decode().split("\n") if line]


def test_what_a_logger_wrote_on_several_lines_has_one_level() -> None:
    written = (
        b"WARNING a: one\n  two\n\tthree\nfour\n  five\nERROR a: six\nTraceback (most recent call last):\n"
    )
    written += b"  File\nINFO a: seven\nE: eight\n"
    levels = [WARNING, WARNING, WARNING, INFO, INFO, ERROR, ERROR, ERROR, INFO, INFO]
    assert [level for level, _ in lines(written)] == levels


# Escape sequences

ESCAPES = [
    (b"\x1b[32mINFO\x1b[0m a: green", "a: green"),
    (b"\x1b[1;38;5;196mred\x1b[m", "red"),
    (b"\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\ and more", "link and more"),
    (b"\x1b]0;a title\x07text", "text"),
    (b"\x1bPdevice\x1b\\text", "text"),
    (b"\x1b(Btext\x1b7\x1b8\x1b=", "text"),
    (b"\x1b[?25lhidden cursor\x1b[?25h", "hidden cursor"),
    (b"\x1b[2J\x1b[Hcleared", "cleared"),
]


@pytest.mark.parametrize(("written", "shown"), ESCAPES)
def test_escape_sequences_are_taken_out_also_when_they_come_in_pieces(written: bytes, shown: str) -> None:
    assert texts(written) == [shown]
    assert texts(*bytes_of(written)) == [shown]


def test_what_is_no_whole_escape_sequence_takes_no_text_with_it() -> None:
    assert texts(b"a\x1b]0;no end\nb\n") == ["a\ufffd]0;no end", "b"]
    assert texts(b"a\x1b[3") == ["a"]
    long = texts(b"\x1b]0;" + b"x" * 5000, b"\nafter\n")
    assert long[0].startswith("\ufffd]0;xxx")
    assert long[1] == "after"


def test_other_control_characters_are_shown_as_such() -> None:
    assert texts(b"a\x00b\x07c\td\xe2\x80\xae") == ["a\ufffdb\ufffdc\td\ufffd"]


# Carriage returns

RETURNS = [
    (b" 10%\r 20%\r100%\n", "100%"),
    (b"\r 10%|#   |\r100%|####|\n", "100%|####|"),
    (b"downloading\rdone       \n", "done"),  # padded, as tqdm does
    (b"downloading\r\x1b[Kdone\n", "done"),  # erased, as pip does
    (b"downloading\r\x1b[2Kdone\n", "done"),
    (b"downloading\x1b[2K\x1b[1Gdone\n", "done"),
    (b"[    ] start\r[ OK \n", "[ OK ] start"),  # what is not overwritten stays, as on a terminal
    (b"line\r\n", "line"),
    (b"line\r\r\n", "line"),
    (b"10%\r20%\r\n", "20%"),
    (b"abc\b\bX\n", "aXc"),
    (b"\b\bab\b \b\n", "a"),
    (b"|\b/\b-\b\\\bdone\n", "done"),
    (b"gone\r\x1b[K\n", None),
]


@pytest.mark.parametrize(("written", "shown"), RETURNS)
def test_a_line_is_shown_as_a_terminal_shows_it(written: bytes, shown: str | None) -> None:
    expected = ["before", *([shown] if shown else []), "after"]
    assert texts(b"before\n" + written + b"after\n") == expected
    assert texts(*bytes_of(b"before\n" + written + b"after\n")) == expected


# Lines that go on


def test_a_bar_that_goes_on_is_shown_now_and_then_and_a_state_once() -> None:
    reader = OutputReader(NO_SECRETS)
    shown = []
    for second in range(601):
        shown += [(second, line.text) for line in reader.read(b"\r%3d s" % second, float(second))]
    assert shown == [(second, f"{second:3} s") for second in range(60, 601, 60)]
    for second in range(601, 1000):
        assert not reader.read(b"", float(second))
    assert [line.text for line in reader.read(b"\rdone \nnext", 1000.0)] == ["done"]
    assert not reader.read(b"", 1000.0 + STATE_INTERVAL - 1)
    assert [line.text for line in reader.read(b"", 1000.0 + STATE_INTERVAL)] == ["next"]
    assert not reader.read(b"\n", 1100.0)  # it has been shown
    assert [line.text for line in reader.read(b"next\n", 1101.0)] == ["next"]


def test_an_unfinished_line_is_shown_without_what_may_be_half_a_secret() -> None:
    reader = OutputReader(SECRETS)
    start = b"x" * SECRETS.longest
    assert not reader.read(start + b"p@ss w", 0.0)
    state = reader.read(b"", STATE_INTERVAL)
    assert [line.text for line in state] == ["x" * len("p@ss w")]
    assert [line.text for line in reader.read(b"ord\n", STATE_INTERVAL)] == [start.decode() + "***"]


def test_a_bar_with_secrets_about_is_shown_in_its_last_whole_state() -> None:
    reader = OutputReader(SECRETS)
    for step in range(100):
        assert not reader.read(b"\r%d%% |%s|" % (step, b"#" * 60), 0.0)
    state = reader.read(b"", STATE_INTERVAL)
    assert [line.text for line in state] == [f"98% |{'#' * 60}|"]


@pytest.mark.parametrize("secrets", [NO_SECRETS, SECRETS], ids=["no secrets", "secrets"])
@pytest.mark.parametrize(
    "piece", [b"x", b"\r50%", b"\r", b"\b", b"a\b", b"\x1b[K", b"\x1b", b"\x1b]", b"//a", b"/", b"\xe2"]
)
def test_memory_is_bounded_whatever_comes(piece: bytes, secrets: Secrets) -> None:
    reader = OutputReader(secrets)
    for _ in range(20):
        reader.read(piece * 10_000, 0.0)
    assert len(reader._unfinished) + len(reader._half_escape) + len(reader._terminal.text) < 100_000


# Decoding


def test_a_character_that_comes_in_pieces_is_whole() -> None:
    written = "Zürich → 東京 🎉".encode()
    assert texts(*bytes_of(written)) == [written.decode()]


def test_bytes_that_are_no_text_are_marked() -> None:
    assert texts(b"a\xffb\xc3\nc\xe2\x82") == ["a\ufffdb\ufffd", "c\ufffd"]


# Cuts


@pytest.mark.parametrize("pieces", [1, 3, 200])
@pytest.mark.parametrize("secrets", [NO_SECRETS, SECRETS], ids=["no secrets", "secrets"])
def test_a_line_that_is_cut_says_how_much_is_missing(pieces: int, secrets: Secrets) -> None:
    whole = b"x" * 60_000
    size = len(whole) // pieces
    (shown,) = texts(*(whole[at : at + size] for at in range(0, len(whole), size)), secrets=secrets)
    kept, _, note = shown.partition("…")
    assert len(shown) <= LONGEST_LINE
    assert note == f" ({60_000 - len(kept):,} more characters)"


def test_a_line_that_fits_is_not_cut() -> None:
    assert texts(b"x" * LONGEST_LINE + b"\n") == ["x" * LONGEST_LINE]
    assert texts(b"x" * (LONGEST_LINE + 1) + b"\n") == ["x" * 3960 + "… (41 more characters)"]


# Secrets


def test_a_password_of_a_few_letters_is_hidden_where_an_address_has_it() -> None:
    secrets = Secrets({"Authorization": basic_authorization("me", "pass")})
    shown = texts(b"401 from https://me:pass@jobmon, bypassed", secrets=secrets)
    assert shown == ["401 from https://***@jobmon, bypassed"]


@pytest.mark.parametrize("lead", [0, 3900, 3955, 3995, 16_370, 16_384, 65_530])
@pytest.mark.parametrize(
    "secret",
    [b"p@ss word", b"p@ss\x1b[1m word", b"p@s\rs word", b"p@ss wo\b\x1b[Krd", b"p\r\x1b[2K@ss\r word"],
)
def test_a_secret_is_hidden_wherever_a_piece_a_cut_or_a_control_character_is(
    secret: bytes, lead: int
) -> None:
    written = b"." * lead + secret + b"," * 100
    halves = [(written[:at], written[at:]) for at in range(lead, lead + len(secret) + 1)]
    for pieces in (*halves, [written]):
        for newline in (b"", b"\n"):
            (shown,) = texts(*pieces, newline, secrets=SECRETS)
            for part in ("p@s", "s wo", "word", "ss w"):
                assert part not in shown
            if lead < 3900:
                assert "***" in shown


def test_a_secret_that_overwriting_puts_together_is_hidden() -> None:
    assert texts(b"xxxxxword\rp@ss \n", secrets=SECRETS) == ["***"]
    assert texts(b"p@ssx\b word\n", secrets=SECRETS) == ["***"]


def test_a_secret_in_a_line_that_goes_on_is_hidden_in_every_state() -> None:
    for at in range(1, len(SECRET)):
        reader = OutputReader(SECRETS)
        shown = []
        for second, piece in enumerate([b"-" * 30_000, SECRET[:at].encode(), SECRET[at:].encode(), b"\n"]):
            shown += reader.read(piece, second * STATE_INTERVAL)
            shown += reader.read(b"\r", second * STATE_INTERVAL + 30)
        for line in shown:
            assert "p@s" not in line.text
            assert "word" not in line.text


@pytest.mark.parametrize("secret", [b"p@ss word", b"p@s\x1b[Ks word"])
def test_a_secret_near_the_end_of_what_has_come_is_hidden(secret: bytes) -> None:
    for rest in range(SECRETS.longest + 2):
        reader = OutputReader(SECRETS)
        reader.read(b"x" * 50 + secret + b"." * rest, 0.0)
        (state,) = reader.read(b"", STATE_INTERVAL)
        assert set(state.text) <= {"x", ".", "*"}
        (line,) = reader.read(b"\n", STATE_INTERVAL)
        assert line.text == "x" * 50 + "***" + "." * rest


def test_an_address_that_comes_in_pieces_shows_no_password() -> None:
    address = b"https://me:pass@jobmon/x"
    for at in range(1, len(address)):
        reader = OutputReader(NO_SECRETS)
        shown = reader.read(b"..." + address[:at], 0.0)
        shown += reader.read(b"", STATE_INTERVAL)
        shown += reader.read(address[at:] + b"\n", STATE_INTERVAL)
        assert shown[-1].text == "...https://***@jobmon/x"
        assert all("pass" not in line.text for line in shown)
