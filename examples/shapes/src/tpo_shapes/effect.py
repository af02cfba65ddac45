"""Tables, plots and statements of what the ablation measured.

    python -m tpo_shapes.effect runs/ablation/ablation.json docs/pictures

draws the plots. The tables stand in docs/effect.md, which `python -m tests.pages` makes of the results in the
repository. A difference is of two cells of one seed, which share its splits; its interval is Student's, of the
differences of n seeds, at 95 %.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich import box
from rich.table import Table

from tpo_shapes.cells import CELLS, COMPARISONS, Comparison

Result = dict[str, Any]
Rows = tuple[str, list[tuple[str, ...]]]
"""A title, and a header with the rows below it."""
RESULTS = Path(__file__).parents[2] / "ablation.json"
"""In a clone of the repository."""


@dataclass(frozen=True)
class Measure:
    """What a number is, and how it is shown."""

    title: str
    factor: float = 100.0
    digits: int = 1
    better: int = 1
    """1 where more is better, -1 where less is."""

    def shown(self, value: float, sign: str = "") -> str:
        """As a table has it."""
        return f"{self.factor * value:{sign}.{self.digits}f}"


MEASURES = {
    "boxes": Measure("boxes: Acc@0.5"),
    "given": Measure("box given"),
    "moments": Measure("moments: R@1, IoU 0.5"),
    "masks": Measure("masks: J&F"),
    "chat": Measure("conversation"),
    "words": Measure("loss of a word", 1.0, 4, -1),
    "ms": Measure("ms an answer", 1.0, 0, -1),
}
"""In percent, but the loss (nats) and the time of an answer."""

REPRODUCED, DIRECTION, NOT, CONTRADICTED = (
    "reproduced in direction and size",
    "reproduced in direction",
    "not reproduced",
    "contradicted",
)
RULE = (
    f'"{CONTRADICTED}": the interval lies on the other side of 0 than the paper\'s difference. "{NOT}": 0 is in it. '
    f"\"{REPRODUCED}\": it lies on the paper's side of 0, and its end reaches the paper's number. "
    f'"{DIRECTION}": it lies on that side, and ends before that number, or the paper has none.'
)


@dataclass(frozen=True)
class Difference:
    """Of a measure between two cells, over the seeds that both have."""

    number: int
    """Seeds."""
    mean: float
    half: float | None
    """Half the width of the interval; None for one seed."""

    def shown(self, measure: Measure) -> str:
        """As a table has it: mean and interval."""
        if self.half is None:
            return measure.shown(self.mean, "+")
        low, high = (measure.shown(end, "+") for end in (self.mean - self.half, self.mean + self.half))
        return f"{measure.shown(self.mean, '+')} [{low}, {high}]"


def paired(differences: Sequence[float]) -> Difference:
    """The mean of differences and their 95 % interval: t(n - 1) times the standard deviation over the root of n."""
    from scipy.stats import t

    number = len(differences)
    half = float(t.ppf(0.975, number - 1)) * stdev(differences) / number**0.5 if number > 1 else None
    return Difference(number, mean(differences), half)


def difference(results: Iterable[Result], comparison: Comparison, measure: str) -> Difference | None:
    """Of a comparison; None where no seed has both of its cells."""
    values = of_cells(results, measure)
    ours, others = values.get(comparison.cell, {}), values.get(comparison.other, {})
    both = [ours[seed] - others[seed] for seed in sorted(ours.keys() & others.keys())]
    return paired(both) if both else None


def of_cells(results: Iterable[Result], measure: str) -> dict[str, dict[int, float]]:
    """What was measured, by cell and seed."""
    found: dict[str, dict[int, float]] = {}
    for result in results:
        if (value := result["measures"][measure]) is not None:
            found.setdefault(result["cell"], {})[result["seed"]] = value
    return found


def verdict(found: Difference, measure: Measure, paper: float | None) -> str:
    """What a difference says of the paper's, which is better where it is above 0; by `RULE`."""
    if found.half is None:
        return "one seed: no interval"
    middle = measure.better * found.mean
    if middle + found.half < 0:
        return CONTRADICTED
    if middle - found.half <= 0:
        return NOT
    reached = paper is not None and measure.factor * (middle + found.half) >= paper
    return REPRODUCED if reached else DIRECTION


# -- tables ------------------------------------------------------------------------------------------------------------


def cells_table(results: Sequence[Result]) -> Rows:
    """A row for each cell: the mean of each measure over its seeds, and their standard deviation."""
    values = {name: of_cells(results, name) for name in MEASURES}
    rows: list[tuple[str, ...]] = [("", *(measure.title for measure in MEASURES.values()), "seeds", "CPU seconds")]
    for name, cell in CELLS.items():
        own = [result for result in results if result["cell"] == name]
        if own:
            shown = [_spread(list(values[key].get(name, {}).values()), measure) for key, measure in MEASURES.items()]
            seconds = f"{mean(result['seconds'] for result in own):.0f}"
            rows.append((cell.about, *shown, str(len(own)), seconds))
    return "Each cell: mean, and standard deviation over the seeds", rows


def _spread(values: Sequence[float], measure: Measure) -> str:
    if not values:
        return "-"
    spread = f" ± {measure.shown(stdev(values))}" if len(values) > 1 else ""
    return f"{measure.shown(mean(values))}{spread}"


def claims_table(results: Sequence[Result]) -> Rows:
    """A row for each measure of each claim of the paper of which there are results."""
    rows: list[tuple[str, ...]] = [("the paper says", "measure", "its difference", "here", "n", "")]
    for comparison in COMPARISONS:
        for key, paper in comparison.measures.items() if comparison.claim else ():
            found = difference(results, comparison, key)
            if found is not None:
                said = "-" if paper is None else f"{paper:+.1f}"
                shown = found.shown(MEASURES[key]), str(found.number), verdict(found, MEASURES[key], paper)
                rows.append((comparison.claim, MEASURES[key].title, said, *shown))
    return "The paper's claims", rows


def differences_table(results: Sequence[Result]) -> Rows:
    """A row for each measure of each comparison of which the paper has no table."""
    rows: list[tuple[str, ...]] = [("", "less", "measure", "difference", "n")]
    for comparison in COMPARISONS:
        for key in comparison.measures if not comparison.claim else ():
            found = difference(results, comparison, key)
            if found is not None:
                titles = CELLS[comparison.cell].about, CELLS[comparison.other].about, MEASURES[key].title
                rows.append((*titles, found.shown(MEASURES[key]), str(found.number)))
    return "Other differences", rows


def rich_table(title: str, rows: Sequence[tuple[str, ...]]) -> Table:
    """For the terminal."""
    shown = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for header in rows[0]:
        shown.add_column(header, overflow="fold")
    for row in rows[1:]:
        shown.add_row(*row)
    return shown


# -- plots -------------------------------------------------------------------------------------------------------------

_PLOTTED = ("boxes", "moments", "masks", "chat")
_TOGETHER = ("region", "temporal", "mask", "region-mask", "all", "all-chat", "chat", "host")


def draw(results: Sequence[Result], folder: Path) -> None:
    """Writes effect_together.svg, what tasks do to each other, a dot for each seed, and effect_differences.svg, each
    difference in percent with its interval, and the paper's."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "effect", "font.size": 9}
    folder.mkdir(parents=True, exist_ok=True)
    for name, plot in (("effect_together", _draw_together), ("effect_differences", _draw_differences)):
        plot(results).savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")


def _draw_together(results: Sequence[Result]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(_PLOTTED)), _PLOTTED, strict=True):
        values = of_cells(results, key)
        names = [name for name in _TOGETHER if name in values]
        for row, name in enumerate(names):
            found = [100 * value for value in values[name].values()]
            axes.plot(found, [row] * len(found), "o", color="#1e90ff", alpha=0.6)
            axes.plot([mean(found)] * 2, [row - 0.3, row + 0.3], color="#ff8c00", linewidth=2)
        axes.set_yticks(range(len(names)), [CELLS[name].about for name in names])
        axes.invert_yaxis()
        axes.set_title(MEASURES[key].title, fontsize=9)
    return figure


def _draw_differences(results: Sequence[Result]) -> Any:
    from matplotlib.figure import Figure

    lines = [
        (f"{CELLS[c.cell].about} less {CELLS[c.other].about}: {MEASURES[key].title}", found, paper)
        for c in COMPARISONS
        for key, paper in c.measures.items()
        if MEASURES[key].factor == 100 and (found := difference(results, c, key)) is not None
    ]
    figure = Figure(figsize=(9, 0.6 + 0.24 * len(lines)))
    axes = figure.subplots()
    axes.axvline(0, color="#bbb")
    for row, (_, found, paper) in enumerate(lines):
        axes.errorbar(100 * found.mean, row, xerr=100 * (found.half or 0), fmt="o", color="#1e90ff", capsize=3)
        if paper is not None:
            axes.plot(paper, row, "|", color="#ff8c00", markersize=12, markeredgewidth=2)
    axes.set_yticks(range(len(lines)), [title for title, *_ in lines])
    axes.invert_yaxis()
    axes.set_xlabel("points, with the 95 % interval; orange: the paper's")
    return figure


def load_results(path: Path = RESULTS) -> list[Result]:
    """What the ablation wrote."""
    found: list[Result] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    draw(load_results(given.results), given.folder)


if __name__ == "__main__":
    main()
