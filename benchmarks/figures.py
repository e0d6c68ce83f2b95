"""The figures of a run: printed as they come, and as a table with their targets at the end."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Figure:
    """One figure.

    :param target: what it must reach, as text; "": nothing, it is for information.
    :param reached: whether it does.
    """

    name: str
    value: float
    unit: str
    target: str
    reached: bool


@dataclass
class Figures:
    """Those of one run."""

    found: list[Figure] = field(default_factory=list)

    def add(
        self,
        name: str,
        value: float,
        unit: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        judged: bool = True,
    ) -> None:
        """Print a figure and keep it.

        :param unit: "": a ratio.
        :param judged: False: the target is for another size than this one.
        """
        print(f"{name} {value:.4g} {unit}".rstrip(), flush=True)
        bounds = [f"≥ {at_least:g}"] if at_least is not None else []
        bounds += [f"≤ {at_most:g}"] if at_most is not None else []
        reached = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        target = " and ".join(bounds) if judged else ""
        self.found.append(Figure(name, value, unit, target, reached or not judged))

    @property
    def missed(self) -> list[str]:
        """Names of those that miss their target."""
        return [figure.name for figure in self.found if not figure.reached]

    def table(self) -> str:
        """Return all of them as a Markdown table."""
        rows = ["| figure | value | target | |", "|---|---|---|---|"]
        for figure in self.found:
            verdict = ("ok" if figure.reached else "MISSED") if figure.target else ""
            value = f"{figure.value:.4g} {figure.unit}".rstrip()
            rows.append(f"| `{figure.name}` | {value} | {figure.target} | {verdict} |")
        return "\n".join(rows)
