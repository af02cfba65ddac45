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
    in their head's name. A picture is a PNG where `output` has the suffix of something else, a video's. Returns the
    files.
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
        output = output if _holds_pictures(output) else output.with_suffix(".png")
        picture.save(output)
        files.append(output)
    return files


def _holds_pictures(path: Path) -> bool:
    from PIL import Image

    Image.init()
    return Image.registered_extensions().get(path.suffix.lower()) in Image.SAVE
