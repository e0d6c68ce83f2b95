"""The table of a run's life, and its picture, for docs/protocol.md."""

from __future__ import annotations

from collections.abc import Iterator

from airflow_jobmon_provider.client.lifecycle import STAGES, RunStatus, Stage

COLUMNS = (
    "code",
    "workflow run",
    "looked after by",
    "moved by, and to",
    "a heartbeat counts",
    "`is_resumable` waits",
    "its workflow",
)


def render() -> str:
    """Return the table and the picture, as Markdown."""
    rows = [_row(status, stage) for status, stage in STAGES.items()]
    table = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, ("---",) * len(COLUMNS), *rows)]
    return "\n".join([*table, "", "```mermaid", "stateDiagram-v2", *_arrows(), "```", ""])


def _row(status: RunStatus, stage: Stage) -> tuple[str, ...]:
    moved = [f"{mover.value}: {_codes(to)}" for mover, to in stage.moves.items()]
    return (
        status.value,
        status.name,
        stage.owner.value,
        "; ".join(moved),
        "yes" if stage.heartbeat else "",
        "yes" if stage.blocks else "",
        stage.workflow.name if stage.workflow else "",
    )


def _codes(statuses: frozenset[RunStatus]) -> str:
    return ", ".join(status.value for status in RunStatus if status in statuses)


def _arrows() -> Iterator[str]:
    for status, stage in STAGES.items():
        for new in (new for new in RunStatus if new in stage.leads_to):
            movers = ", ".join(mover.value for mover, to in stage.moves.items() if new in to)
            yield f"    {status.name} --> {new.name}: {movers}"
