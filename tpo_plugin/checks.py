"""Checks of values in records and configurations, for heads of any author. No torch in here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tpo_plugin.errors import shown

_CORNERS = ("x1", "y1", "x2", "y2")


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float, and no bool."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int that is greater than any float
        return False


def is_count(value: Any) -> bool:
    """Whether it is an int of at least 1, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_list(value: Any) -> bool:
    """Whether it is a list or a tuple, as JSON's arrays are read."""
    return isinstance(value, (list, tuple))


def check_seconds(where: str, value: Any) -> None:
    """Raises `ValueError` that begins with `where` for what is no time of a video, in seconds of at least 0."""
    if not (is_number(value) and value >= 0):
        raise ValueError(f"{where} is {shown(value)}; expected seconds from the start of the video, at least 0")


def check_box(where: str, box: Any) -> None:
    """Raises `ValueError` that begins with `where` for what is no box [x1, y1, x2, y2] with an area, in 0 to 1 of the
    image's width and height.
    """
    if not is_list(box) or len(box) != 4:
        raise ValueError(f"{where} is {shown(box)}; expected four numbers [x1, y1, x2, y2]")
    for corner, value in zip(_CORNERS, box, strict=True):
        if not (is_number(value) and 0 <= value <= 1):
            raise ValueError(
                f"{where}: {corner} is {shown(value)}; expected a number from 0 to 1, "
                f"a share of the width or height of its image ({_scale_of(box)})"
            )
    for low, high in ((0, 2), (1, 3)):
        if box[low] >= box[high]:
            first, second = _CORNERS[low], _CORNERS[high]
            raise ValueError(
                f"{where}: {first} is {box[low]!r} and {second} is {box[high]!r}; expected {first} < {second} "
                f"(corners, not width and height{_as_corners(box)})"
            )


def check_inside(where: str, path: str | Path, folder: str | Path) -> None:
    """Raises `ValueError` that begins with `where` for a path that leads out of `folder`, links followed."""
    try:
        inside = Path(path).resolve().is_relative_to(Path(folder).resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle, a name that no file can have
        inside = False
    if not inside:
        raise ValueError(
            f"{where} is {shown(str(path))}, which lies outside of {shown(str(folder))}; expected a file in that "
            "folder, or records that are not confined to it"
        )


def _scale_of(box: Any) -> str:
    """What may have been meant by numbers that are no shares, and what then is to be done."""
    if not all(is_number(value) and value >= 0 for value in box):
        return "divide pixels by it; cut it off at the edge of the image"
    pixels = "pixels: divide x by the width of the image, y by its height"
    if max(box) > 1000:
        return f"these look like {pixels}"
    if all(float(value).is_integer() for value in box):
        return f"these look like {pixels}; or like 0 to 1000: divide all by 1000"
    return f"these may be {pixels}; or percent: divide all by 100"


def _as_corners(box: Any) -> str:
    """The corners of a box, where its numbers may be its corner, width and height."""
    x, y, width, height = box
    if x + width > 1 or y + height > 1 or not (width and height):
        return ""
    corners = [round(value, 6) for value in (x, y, x + width, y + height)]
    return f"; if they are x, y, width and height, write {corners}, and so in the whole file"
