"""J, F and J&F of masks in folders of PNGs, as SA-V's and DAVIS's evaluators read them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import tpo_plugin as tpo
from tpo_head_mask.jf import JFScores
from tpo_head_mask.masks import read_ids


def score_folders(truth: Path, predicted: Path, *, skip_ends: bool = True) -> JFScores:
    """Scores every sequence, a folder, of `truth`; frames are paired by name, and extra predictions are ignored.

    A sequence holds PNGs of object ids, or a folder of PNGs for each object. Raises `TPOError` for one that
    `predicted` lacks, and where a frame is missing or cannot be read.
    """
    scores = JFScores(skip_ends=skip_ends)
    for path in (truth, predicted):
        if not path.is_dir():
            raise tpo.TPOError(f"{path}: no such folder")
    sequences = sorted(path for path in truth.iterdir() if path.is_dir())
    if not sequences:
        raise tpo.TPOError(f"{truth}: holds no sequence; expected a folder for each")
    for sequence in sequences:
        other = predicted / sequence.name
        if not other.is_dir():
            raise tpo.TPOError(f"{other}: no such folder; expected the predictions of sequence {sequence.name!r}")
        objects = sorted(path for path in sequence.iterdir() if path.is_dir())
        if objects:
            names = {path.name: _frames(path) for path in objects}
            scores.add_objects(
                sequence.name,
                {name: _read(sequence / name, frames) for name, frames in names.items()},
                {name: _read(other / name, frames) for name, frames in names.items()},
            )
        else:
            frames = _frames(sequence)
            scores.add_labels(sequence.name, _read(sequence, frames), _read(other, frames))
    return scores


def table(scores: JFScores, *, as_json: bool = False) -> str:
    """The scores, 0 to 100, of all objects together and of each, and what was skipped."""
    if as_json:
        objects = [
            {"sequence": sequence, "object": name, "J&F": item.jf, "J": item.j, "F": item.f}
            for (sequence, name), item in scores.objects.items()
        ]
        skipped = [{"sequence": s, "object": name, "reason": reason} for (s, name), reason in scores.skipped.items()]
        return json.dumps({"mean": scores.mean(), "objects": objects, "skipped": skipped}, indent=2)
    rows = [("sequence", "object", "J&F", "J", "F")]
    for (sequence, name), item in scores.objects.items():
        rows.append((sequence, name, f"{item.jf:.2f}", f"{item.j:.2f}", f"{item.f:.2f}"))
    if scores.objects:
        mean = scores.mean()
        num = f"{len(scores.objects)} objects"
        rows.append(("mean", num, f"{mean['J&F']:.2f}", f"{mean['J']:.2f}", f"{mean['F']:.2f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines + [f"skipped: {s}, object {name}: {why}" for (s, name), why in scores.skipped.items()])


def _frames(path: Path) -> list[str]:
    names = sorted(file.name for file in path.glob("*.png"))
    if not names:
        raise tpo.TPOError(f"{path}: holds no PNG")
    return names


def _read(path: Path, names: list[str]) -> Iterator[np.ndarray]:
    for name in names:
        yield read_ids(path / name)
