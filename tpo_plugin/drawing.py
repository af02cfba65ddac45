"""What the heads found, drawn on a picture, or on a whole clip in files of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from tpo_plugin.data import VideoClip
    from tpo_plugin.head import TaskHead


def draw(
    heads: Mapping[str, TaskHead],
    found: Sequence[tuple[str, Any]],
    picture: Image,
    clip: VideoClip | None,
    output: Path,
) -> list[Path]:
    """Writes `output` with all that belongs to one picture, and for a head that draws a whole clip a file of its own.

    `found` are names of heads and their values. Where there is only one file, it has the stem of `output`; others end
    in their head's name. Returns the files.
    """
    values: dict[str, list[Any]] = {}
    for name, value in found:
        values.setdefault(name, []).append(value)
    files, on_picture = [], not values
    for name, of_head in values.items():
        stem = output.with_name(output.stem if len(values) == 1 else f"{output.stem}_{name}")
        file = heads[name].draw_video(clip, of_head, stem) if clip is not None else None
        if file is not None:
            files.append(file)
            continue
        on_picture = True
        for value in of_head:
            picture = heads[name].draw(picture, value)
    if on_picture:
        picture.save(output)
        files.append(output)
    return files
