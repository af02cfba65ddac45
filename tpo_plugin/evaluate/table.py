"""The scores of an evaluation as text, each in a line with what it is of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SHOWN = 5
"""Failures that are printed."""
QUESTIONS = (
    "of which data?",
    "of which head?",
    "what is measured?",
    "how good are the answers?",
    "of how many?",
    "how many frames?",
    "called where it is wanted?",
    "called where it is not?",
    "time to read",
    "time to ask",
)
"""The header of the table for readers of a page, column by column."""
_HEADER = ("split", "head", "score", "value", "of", "frames", "emission", "false triggers", "read", "ask")


def table(results: dict[str, Any]) -> str:
    """A line for each score: value; of how many; frames of each video; rates; seconds of the evaluation's phases."""
    lines_of = [_HEADER, *rows(results)]
    widths = [max(len(row[column]) for row in lines_of) for column in range(len(_HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in lines_of]
    lines.append(num_questions(results))
    lines += [f"  {said(failure)}" for failure in results["failures"][:_SHOWN]]
    if len(results["failures"]) > _SHOWN:
        lines.append(f"  and {len(results['failures']) - _SHOWN} more, in results.json")
    return "\n".join([*lines, *notes(results)])


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The lines of the table."""
    splits = dict(results["splits"]) | ({"all": results["all"]} if "all" in results else {})
    short = {name: Path(name).name for name in splits}
    if len(set(short.values())) < len(short):
        short = {name: name for name in splits}
    return [row for name, split in splits.items() for row in _rows(short[name], split, results)]


def num_questions(results: dict[str, Any]) -> str:
    """How many were asked, and how many of them failed."""
    total = results.get("all") or next(iter(results["splits"].values()))
    return f"{total['questions']} questions, {total['failed']} failed"


def notes(results: dict[str, Any]) -> list[str]:
    """What must be known to read the table."""
    lines = []
    if results["benchmark"] is not None:
        lines.append(f"{results['benchmark']}: {results['conventions'][results['benchmark']]}")
    if results["route"] is not None:
        lines.append(f"asked with --route {results['route']}: the trigger is forced, so that emission is not measured")
    return lines


def said(failure: dict[str, Any]) -> str:
    """A failure in one line."""
    return f"{failure['record']}, turn {failure['turn']}: {failure['reason']}"


def _rows(name: str, split: dict[str, Any], results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    low, high = split.get("frames", (None, None))
    frames = "-" if low is None else str(low) if low == high else f"{low}-{high}"
    seconds = tuple(f"{results['seconds'][phase]:.1f} s" for phase in ("read", "ask"))
    if "chat" in split:
        chat, false = split["chat"], split.get("false_triggers")
        of = f"{chat['questions']} answers"
        yield name, "-", "chat agreement", f"{chat['agreement']:.4f}", of, frames, "-", _percent(false), *seconds
    if "benchmark" in split:
        benchmark = split["benchmark"]
        rates = _rates(split, benchmark["head"])
        for score, value in benchmark["scores"].items():
            shown = f"{value:.4f}" if isinstance(value, float) else str(value)
            yield name, benchmark["head"], f"{benchmark['name']}: {score}", shown, "-", frames, *rates, *seconds
    for head, found in split["heads"].items():
        rates = _rates(split, head)
        given = "of_given" in found
        of = f"{found['given']} given of {found['wanted']}" if given else f"{found.get('wanted', 0)} wanted"
        for score, value in found.get("of_given" if given else "metrics", {}).items():
            yield name, head, score, f"{value:.4f}", of, frames, *rates, *seconds


def _rates(split: dict[str, Any], head: str) -> tuple[str, str]:
    found = split["heads"].get(head, {})
    return _percent(found.get("emission")), _percent(found.get("false_triggers"))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
