"""From a dataset in a published format to records."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tpo_plugin as tpo
from tpo_head_mask.formats import FORMATS, Found, FrameList, Skipped


@dataclass
class Conversion:
    """What became of a dataset."""

    path: Path
    num_records: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def report(self) -> str:
        """What was written, and what was not and why."""
        lines = [f"{self.path}: {self.num_records} records, {len(self.skipped)} skipped"]
        return "\n".join(lines + [f"  {item.id}: {item.reason}" for item in self.skipped])


def convert(name: str, root: Path, path: Path, split: str | None = None) -> Conversion:
    """Writes the records of `root`, in format `name`, to a JSON Lines file.

    Masks are in it as RLE. A video whose frames are image files becomes a list of them, .ffconcat, in a folder beside
    the records. Media inside the records' folder are named relative to it, others by their whole path. Raises
    `TPOError` for a dataset that is not laid out as the format says, or gives no record; then no record file is left.
    """
    if name not in FORMATS:
        raise tpo.TPOError(f"format is {name!r}; expected one of {', '.join(map(repr, FORMATS))}")
    if not root.is_dir():
        raise tpo.TPOError(f"{root}: no such folder")
    result = Conversion(path)
    lists = path.parent / f"{path.stem}_videos"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            for sample in FORMATS[name](root, split):
                if isinstance(sample, Skipped):
                    result.skipped.append(sample)
                else:
                    file.write(json.dumps(_record(sample, path.parent, lists), ensure_ascii=False) + "\n")
                    result.num_records += 1
        if not result.num_records:
            raise tpo.TPOError(f"{root} gives no record of format {name!r}; {result.report()}")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return result


def _record(found: Found, base: Path, lists: Path) -> dict[str, Any]:
    if isinstance(found.medium, FrameList):
        kind, medium = "video", _frame_list(found.medium, lists)
    else:
        medium = found.medium
        kind = "video" if medium.suffix.lower() == ".mp4" else "image"
    return {
        "id": found.id,
        kind: _reference(medium, base),
        "conversations": [
            {"from": "human", "value": f"<{kind}>\n{found.question}"},
            {"from": "gpt", "value": found.answer},
        ],
        "tasks": list(found.tasks),
    }


def _frame_list(video: FrameList, lists: Path) -> Path:
    """The list's file, written where it is not there yet with this content."""
    path = lists / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', video.name)}.ffconcat"
    lines = ["ffconcat version 1.0"]
    ends_s = [*video.times_s[1:], video.end_s]
    for file, start, end in zip(video.files, video.times_s, ends_s, strict=True):
        quoted = _reference(file, lists).replace("'", "'\\''")
        lines += [f"file '{quoted}'", f"duration {end - start:.6f}"]
    text = "\n".join(lines) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        lists.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path


def _reference(path: Path, base: Path) -> str:
    """How a file in `base` names `path`: relative where it lies beside or below, whole otherwise."""
    path, base = Path(os.path.abspath(path)), Path(os.path.abspath(base))
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()
