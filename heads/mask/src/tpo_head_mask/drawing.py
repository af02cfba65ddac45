"""Masks and boxes over pictures and videos. H height, W width in pixels; frames are uint8 RGB [H, W, 3]."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import tpo_plugin as tpo
from tpo_head_mask.masks import Box, as_mask, box_of, read_mask

COLOURS = ("#ff8c00", "#00c2a8", "#d64fc8", "#f2d400", "#8f6bff", "#5fd35f", "#ff5a5a", "#35b6ff")
"""Of the first object, the second, ...; they repeat."""
TRUE_COLOUR = "#1e90ff"
_OPACITY = 0.5
_TRAIL = 48
"""Centres that a trajectory shows behind a box."""
_SAME_TIME_S = 1e-3


def draw_masks(image: Image.Image, masks: Sequence[Any], targets: Sequence[Any] = ()) -> Image.Image:
    """A copy of `image`, RGB, with each mask [H, W] filled in its colour, and the true ones outlined in blue.

    A mask is an array or RLE; None stands for an object that is not there. Raises `TPOError` for one of another size.
    """
    pixels = np.array(image.convert("RGB"))
    paint_masks(pixels, *([None if mask is None else as_mask(mask) for mask in given] for given in (masks, targets)))
    return Image.fromarray(pixels)


def draw_boxes(
    image: Image.Image, trails: Sequence[Sequence[Any]], targets: Sequence[Any] = (), *, bold: bool = False
) -> Image.Image:
    """A copy of `image`, RGB, with each object's box, and behind it the line that its centre came along.

    A trail is an object's boxes [x1, y1, x2, y2] (0 to 1), or None, up to this frame. `targets` are the true boxes of
    this frame, drawn in blue; bold where the picture is made small.
    """
    drawn = image.convert("RGB")
    drawn = drawn.copy() if drawn is image else drawn
    pen, line = ImageDraw.Draw(drawn), _line(image.size) * (1 + bold)
    for box in targets:
        _draw_box(pen, box, image.size, TRUE_COLOUR, line)
    for number, trail in enumerate(trails):
        colour = COLOURS[number % len(COLOURS)]
        _draw_way(pen, trail, image.size, colour)
        if trail:
            _draw_box(pen, trail[-1], image.size, colour, line)
    return drawn


def draw_tasks(
    tasks: Sequence[Mapping[str, Any]], given: Sequence[Mapping[str, Any]], sample: tpo.Sample
) -> list[Image.Image]:
    """Pictures of a record's objects in the first and in the last frame that shows one of them, or in its image.

    Boxes that a user gives are drawn in blue. Raises `MediaError` for a mask that cannot be read or is of another size.
    """
    objects = [_with_times(task) for task in tasks]
    seen_s = [s for o in objects for s, *shown in zip(o["times"], *_entries(o), strict=True) if any(shown)]
    times = dict.fromkeys([t.get("time", 0.0) for t in given] + ([min(seen_s), max(seen_s)] if seen_s else []))
    pictures = []
    for second in times:
        picture = sample.picture(second)
        size = picture.height, picture.width
        masks = [_at(o, "masks", second, size) for o in objects]
        picture = draw_masks(picture, masks)
        boxes = [[box] if (box := _at(o, "boxes", second)) is not None else [] for o in objects]
        pictures.append(
            draw_boxes(picture, boxes, [t["box"] for t in given if t.get("time", 0.0) == second], bold=True)
        )
    return pictures


def _with_times(task: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"times": [task.get("time", 0.0)], **task}


def _entries(item: Mapping[str, Any]) -> list[Any]:
    return [item[name] for name in ("masks", "boxes") if name in item]


def fitted(masks: Sequence[Any], size: tuple[int, int]) -> list[Any]:
    """The masks at a picture's size (width, height), pixel by pixel; None stays."""
    return [
        None
        if mask is None
        else np.asarray(Image.fromarray(as_mask(mask)).resize(size, Image.Resampling.NEAREST), dtype=bool)
        for mask in masks
    ]


def paint_masks(pixels: np.ndarray, masks: Sequence[Any], targets: Sequence[Any] = ()) -> None:
    """As `draw_masks`, in place on a frame [H, W, 3]."""
    line = max(1, min(pixels.shape[:2]) // 240)
    for number, mask in enumerate(masks):
        if mask is not None:
            _paint(pixels, mask, _rgb(COLOURS[number % len(COLOURS)]), line, fill=True)
    for mask in targets:
        if mask is not None:
            _paint(pixels, mask, _rgb(TRUE_COLOUR), line, fill=False)


def draw_video(
    path: Path,
    frames: Iterable[tuple[float, np.ndarray]],
    objects: Sequence[Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]] = (),
    *,
    end_s: float | None = None,
    least_side: int = 0,
) -> Path:
    """An MP4 of (second, frame) pairs with objects over them; one frame is held at a time. See `tpo.write_video`.

    An object has "times", seconds, and for each of them, under "masks", RLE, an array [H, W] or None, and under
    "boxes", [x1, y1, x2, y2] (0 to 1) or None; one of both suffices. A line shows the way that its centre came. What
    belongs to a time is shown until the object's next one. True ones, `targets`, are outlined in blue. Frames are
    enlarged a whole number of times, as long as their longer side has no more than `least_side` pixels.
    """
    return tpo.write_video(path, _drawn(frames, objects, targets, least_side), end_s)


def _drawn(
    frames: Iterable[tuple[float, np.ndarray]],
    objects: Sequence[Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]],
    least_side: int,
) -> Iterator[tuple[float, np.ndarray]]:
    ways: list[deque[Box | None]] = [deque(maxlen=_TRAIL) for _ in objects]
    for second, frame in frames:
        height, width = (max(1, least_side // max(frame.shape[:2])) * length for length in frame.shape[:2])
        pixels = np.array(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
        masks = [_at(o, "masks", second) for o in objects]
        true = [_at(o, "masks", second) for o in targets]
        paint_masks(pixels, fitted(masks, (width, height)), fitted(true, (width, height)))
        picture = Image.fromarray(pixels)
        pen = ImageDraw.Draw(picture)
        for item in targets:
            _draw_box(pen, _at(item, "boxes", second), picture.size, TRUE_COLOUR)
        for number, (item, mask, way) in enumerate(zip(objects, masks, ways, strict=True)):
            colour = COLOURS[number % len(COLOURS)]
            box = _at(item, "boxes", second)
            way.append(box if "boxes" in item or mask is None else box_of(mask))
            _draw_way(pen, way, picture.size, colour)
            _draw_box(pen, box, picture.size, colour)
        yield second, np.asarray(picture)


def _at(item: Mapping[str, Any], name: str, second: float, size: tuple[int, int] | None = None) -> Any:
    """The object's mask or box that is shown at a second, or None. With `size` (H, W), masks are a record's."""
    index = bisect_right(item["times"], second + _SAME_TIME_S) - 1
    found = item[name][index] if name in item and index >= 0 else None
    if name != "masks" or found is None:
        return found
    return as_mask(found) if size is None else read_mask(found, size)


def _paint(pixels: np.ndarray, mask: Any, rgb: np.ndarray, line: int, *, fill: bool) -> None:
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != pixels.shape[:2]:
        raise tpo.TPOError(f"a mask of shape {list(mask.shape)} does not fit a picture of {list(pixels.shape[:2])}")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return
    reach = line + 1
    window = (
        slice(max(0, rows[0] - reach), rows[-1] + 1 + reach),
        slice(max(0, columns[0] - reach), columns[-1] + 1 + reach),
    )
    part, inside = pixels[window], mask[window]
    if fill:
        part[inside] = (part[inside] * (1 - _OPACITY) + rgb * _OPACITY).astype(np.uint8)
    outline = _grown(inside, line) & ~inside
    rim = _grown(inside, line + 1) & ~inside & ~outline
    part[outline] = rgb
    part[rim] = part[rim] // 3  # a dark rim: legible on any background


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """The mask and what lies within `by` pixels of it, along rows and columns in turn."""
    for _ in range(by):
        wider = mask.copy()
        wider[1:] |= mask[:-1]
        wider[:-1] |= mask[1:]
        wider[:, 1:] |= mask[:, :-1]
        wider[:, :-1] |= mask[:, 1:]
        mask = wider
    return mask


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def _draw_way(pen: ImageDraw.ImageDraw, trail: Iterable[Any], size: tuple[int, int], colour: str) -> None:
    """The line along which the centres of the last boxes came; broken where the object was not there."""
    centres = [None if box is None else _pixel((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, size) for box in trail]
    steps = [[before, after] for before, after in pairwise(centres[-_TRAIL:]) if before and after]
    line = _line(size)
    for fill, width in (("black", line + 2), (colour, line)):
        for step in steps:
            pen.line(step, fill=fill, width=width)


def _draw_box(pen: ImageDraw.ImageDraw, box: Any, size: tuple[int, int], colour: str, line: int | None = None) -> None:
    if box is None:
        return
    (left, top), (right, bottom) = _pixel(box[0], box[1], size), _pixel(box[2], box[3], size)
    line = line or _line(size)
    pen.rectangle([left - 1, top - 1, right + 1, bottom + 1], outline="black", width=line + 2)
    pen.rectangle([left, top, right, bottom], outline=colour, width=line)


def _line(size: tuple[int, int]) -> int:
    return max(1, min(size) // 160)


def _pixel(x: Any, y: Any, size: tuple[int, int]) -> tuple[int, int]:
    """From shares of the picture's (width, height)."""
    return round(float(x) * (size[0] - 1)), round(float(y) * (size[1] - 1))
