"""The demo with several seeds, and what comes of it: means, spreads, and the worst seed.

    python -m tpo_shapes.seeds runs/seeds --seed 0 1 2 3 4

Each seed is a run of `tpo demo` in its folder; one that is there already is not run again. What each of them measured
is then written to RESULTS, of which the tables in the pages are made.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tpo_shapes.questions import CHAT, CLIP_CHAT
from tpo_shapes.report import CONSTANT, HOST, MASK_KINDS, MEASURES, OF_CONSTANT, TPO

Results = dict[str, Any]
RESULTS = Path(__file__).parents[2] / "results.json"
"""In a clone of the repository."""
MEDIA = {"images": "pictures", "clips": "clips"}
_UNASKED = ("box_otherwise", "moment_otherwise", "mask_otherwise")
"""Measures of which less is better."""


def load_results(path: Path = RESULTS) -> list[Results]:
    """What each seed measured, as in its results.json."""
    found: list[Results] = json.loads(path.read_text(encoding="utf-8"))
    return found


_SUMMARY = (
    ("boxes: Acc@0.5", "rows", "images", "acc50"),
    ("in clips", "rows", "clips", "acc50"),
    ("moments: R@1, IoU 0.5", "rows", "clips", "r1_50"),
    ("masks: J&F", "masks", "outline", "J&F"),
    ("in clips", "masks", "follow", "J&F"),
    ("chat", "rows", "images", "chat"),
    ("about clips", "rows", "clips", "chat"),
)


def summary_table(results: list[Results]) -> list[tuple[str, ...]]:
    """A row for each of those that answer, the mean over the seeds of the measures that matter most; of TPO the worst
    seed of each too."""
    rows = [("", *(title for title, *_ in _SUMMARY))]
    for name in results[0]["rows"]:
        values = [
            _values(results, name, part, key)
            if table == "rows"
            else [r["masks"].get(name, {}).get(part, {}).get(key) for r in results]
            for _, table, part, key in _SUMMARY
        ]
        rows.append((name, *map(_mean, values)))
        if name == TPO and len(results) > 1:
            rows.append(("its worst seed", *(f"{100 * min(found):.1f}" for found in values)))
    return rows


def scores_table(results: list[Results], titles: tuple[str, ...] | None = None) -> list[tuple[str, ...]]:
    """The rows of a table, its header first: of each measure (those of `titles`, or all) TPO's mean, spread and worst
    over the seeds, and the mean of each of the others."""
    others = [name for name in results[0]["rows"] if name != TPO]
    rows = [("", "TPO", "spread", "worst", *others)]
    for title, media, key in MEASURES:
        if titles is None or title in titles:
            worst = max if key in _UNASKED else min
            values = [_values(results, name, media, key) for name in others]
            rows.append((title, *_summed(_values(results, TPO, media, key), worst), *map(_mean, values)))
    return rows


def masks_table(results: list[Results]) -> list[tuple[str, ...]]:
    """The same of the masks, J&F."""
    others = [name for name in results[0]["masks"] if name != TPO]
    rows = [("J&F", "TPO", "spread", "worst", *others)]
    for kind, title in MASK_KINDS.items():
        values = {name: [r["masks"][name][kind]["J&F"] for r in results] for name in (TPO, *others)}
        rows.append((title, *_summed(values.pop(TPO), min), *map(_mean, values.values())))
    return rows


def chat_table(results: list[Results]) -> list[tuple[str, ...]]:
    """Each kind of conversation: what the host says rightly before and after, and after the training on text."""
    others = [name for name in results[0]["rows"] if name not in (TPO, HOST, CONSTANT)]
    rows = [("", HOST, TPO, "the most that a seed lost", *others)]
    for media, kinds in (("images", CHAT), ("clips", CLIP_CHAT)):
        for kind in kinds:
            before, after = (_of(results, name, media, kind) for name in (HOST, TPO))
            lost = max(b - a for b, a in zip(before, after, strict=True))
            rest = [_mean(_of(results, name, media, kind)) for name in others]
            rows.append((f"{MEDIA[media]}: {kind}", _mean(before), _mean(after), f"{100 * lost:.1f}", *rest))
    return rows


def _values(results: list[Results], name: str, media: str, key: str) -> list[float | None]:
    """Of each seed; none of what a constant answer is not measured by."""
    return [r["rows"][name][media][key] for r in results] if name != CONSTANT or key in OF_CONSTANT else []


def _of(results: list[Results], name: str, media: str, kind: str) -> list[float]:
    values = [r["rows"][name][media]["kinds"][kind] for r in results]
    return [value for value in values if value is not None]


def _summed(values: Sequence[float | None], worst: Callable[[list[float]], float]) -> tuple[str, str, str]:
    known = [value for value in values if value is not None]
    return _mean(known), f"{100 * stdev(known):.1f}" if len(known) > 1 else "-", f"{100 * worst(known):.1f}"


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * mean(known):.1f}" if known else "-"


def main() -> None:
    """Command line."""
    from tpo_shapes.demo import run_demo
    from tpo_shapes.recipe import FULL

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    given = parser.parse_args()
    results = [run_demo(given.directory / f"seed-{seed}", FULL, seed) for seed in given.seed]
    RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, results)) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
