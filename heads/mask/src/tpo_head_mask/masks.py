"""What a record says about one object: its masks or boxes, over time, and the box that a user gives.

    {"head": "mask", "masks": [M]}                                       an image
    {"head": "mask", "masks": [M, null, M], "times": [0.0, 0.5, 1.0]}    a video; null: the object is not in that frame
    {"head": "mask", "boxes": [B, null, B], "times": [0.0, 0.5, 1.0]}    a video where only boxes are known
    {"head": "mask", "box": B, "time": 0.0}                              in a human turn: a box that the user gives

M is COCO RLE, or the path of a PNG (0 is background, one other value the object), or {"png": path, "id": 3}, the pixels
of that value in a map of object ids. B is [x1, y1, x2, y2], 0 to 1 of the image's width and height. Times are seconds.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import tpo_plugin as tpo
from tpo_head_mask import rle
from tpo_head_mask.jf import object_ids
from tpo_plugin.checks import check_box, check_seconds, is_count, is_list
from tpo_plugin.errors import shown

Box = list[float]
_TARGETS = ("masks", "boxes")
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
"""How every PNG begins; width and height follow."""


def check_task(task: Mapping[str, Any], max_pixels: int = rle.MAX_PIXELS) -> None:
    """Raises `ValueError` that begins with the field. Mask files are opened by `read_mask`, not here.

    `max_pixels` is what one mask may have.
    """
    given = [name for name in (*_TARGETS, "box") if name in task]
    if len(given) != 1:
        raise ValueError(
            f"{given[1] if given else 'masks'} is {'given beside ' + given[0] if given else 'missing'}; expected one "
            "of 'masks', 'boxes' (to predict) and 'box' (given by the user)"
        )
    if given == ["box"]:
        check_box("box", task["box"])
        if "time" in task:
            check_seconds("time", task["time"])
        return
    (name,) = given
    items = task[name]
    if not is_list(items) or not items:
        raise ValueError(f"{name} is {shown(items)}; expected a list with one entry for each annotated frame")
    for index, item in enumerate(items):
        if item is not None and name == "masks":
            check_mask(f"{name}[{index}]", item, max_pixels)
        elif item is not None:
            check_box(f"{name}[{index}]", item)
    if all(item is None for item in items):
        raise ValueError(f"{name} holds null alone; expected the object in at least one frame")
    if name == "masks":
        _check_masks(items)
    _check_times(task.get("times"), name, len(items))


def _check_masks(items: Sequence[Any]) -> None:
    encoded = [(index, item) for index, item in enumerate(items) if isinstance(item, Mapping) and "counts" in item]
    for index, item in encoded:
        if list(item["size"]) != list(encoded[0][1]["size"]):
            raise ValueError(
                f"masks[{index}]: size is {list(item['size'])}, that of masks[{encoded[0][0]}] is "
                f"{list(encoded[0][1]['size'])}; expected one size in all frames"
            )
    if len(encoded) == sum(item is not None for item in items) and not any(rle.area(item) for _, item in encoded):
        raise ValueError("masks has no foreground pixel in any frame; leave the object out, or its task")


def _check_times(times: Any, name: str, num: int) -> None:
    if times is None:
        if num > 1 or name == "boxes":
            raise ValueError(f"times is missing; expected the second of each of the {num} {name}")
        return
    if not is_list(times) or len(times) != num:
        given = len(times) if is_list(times) else repr(times)
        raise ValueError(f"times has {given} entries, {name} has {num}; expected the second of each frame")
    for index, time in enumerate(times):
        check_seconds(f"times[{index}]", time)
        if index and time <= times[index - 1]:
            raise ValueError(f"times[{index}] is {time!r} after {times[index - 1]!r}; expected ascending seconds")


def check_mask(where: str, mask: Any, max_pixels: int = rle.MAX_PIXELS) -> None:
    """Raises `ValueError` that begins with `where`. An RLE is checked wholly; a file is not opened."""
    if isinstance(mask, str) and mask:
        return
    if isinstance(mask, Mapping) and "png" in mask:
        if not isinstance(mask["png"], str) or not is_count(mask.get("id")):
            raise ValueError(f'{where} is {shown(dict(mask))}; expected {{"png": path, "id": object id above 0}}')
        return
    if not isinstance(mask, Mapping):
        raise ValueError(f"{where} is {shown(mask)}; expected COCO RLE, the path of a PNG, or null")
    try:
        rle.check(mask, max_pixels)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def resolve(task: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The task with the paths of its PNGs starting at `folder`."""
    resolved = dict(task)
    if is_list(task.get("masks")):
        resolved["masks"] = [_resolve_mask(mask, folder) for mask in task["masks"]]
    return resolved


def _resolve_mask(mask: Any, folder: Path) -> Any:
    if isinstance(mask, str):
        return str(folder / mask)
    if isinstance(mask, Mapping) and isinstance(mask.get("png"), str):
        return {**mask, "png": str(folder / mask["png"])}
    return mask


def named_files(task: Mapping[str, Any]) -> list[str]:
    """The PNGs of a task, in their order."""
    return [mask if isinstance(mask, str) else mask["png"] for mask in task.get("masks", []) if _is_png(mask)]


def _is_png(mask: Any) -> bool:
    return isinstance(mask, str) or (isinstance(mask, Mapping) and "png" in mask)


def read_mask(mask: Any, size: tuple[int, int] | None = None, max_pixels: int = rle.MAX_PIXELS) -> np.ndarray:
    """A record's mask as bool [H, W]; `size` is the (height, width) that its image has, where it is known.

    Raises `MediaError`: a PNG that cannot be read, has more than `max_pixels`, holds several objects where none is
    chosen, or does not hold the chosen one; a mask of another size than its image.
    """
    if not _is_png(mask):
        pixels, name = rle.decode(mask, max_pixels), "the mask"
    else:
        name = str(mask["png"] if isinstance(mask, Mapping) else mask)
        ids = read_ids(name, max_pixels)
        found = object_ids(ids)
        if isinstance(mask, Mapping):
            wanted = mask["id"]
            if wanted not in found:
                raise tpo.MediaError(f"{name}: holds no object {wanted}; its object ids are {found}")
        elif len(found) > 1:
            raise tpo.MediaError(
                f"{name}: holds the values {[0, *found][:8]}; expected background and one object, or an object chosen "
                f'by {{"png": ..., "id": {found[0]}}}'
            )
        else:
            wanted = found[0] if found else 1
        pixels = ids == wanted
    check_size(name, pixels, size)
    return pixels


def check_size(name: str, mask: np.ndarray, size: tuple[int, int] | None) -> None:
    """Raises `MediaError` where a mask [H, W] is not of its image's (height, width)."""
    if size is not None and mask.shape != tuple(size):
        (height, width), (wanted_height, wanted_width) = mask.shape, size
        raise tpo.MediaError(
            f"{name}: is {width} x {height} pixels, its image {wanted_width} x {wanted_height}; expected the same size"
        )


def read_ids(path: str | Path, max_pixels: int = rle.MAX_PIXELS) -> np.ndarray:
    """A PNG's values [H, W]: object ids of a palette or grey image. Raises `MediaError`, also for too many pixels."""
    with _open(path, max_pixels) as image:
        if image.mode not in ("1", "P", "L", "I", "I;16"):
            raise tpo.MediaError(
                f"{path}: is an image of mode {image.mode}, in colours; expected a palette or grey image whose values "
                "are object ids"
            )
        return np.asarray(image.convert("L") if image.mode == "1" else image)


def png_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of a PNG, of which the header alone is read. Raises `MediaError`."""
    with _open(path, None) as image:
        return image.height, image.width


@contextmanager
def _open(path: str | Path, max_pixels: int | None) -> Iterator[Image.Image]:
    """A PNG file; whatever Pillow raises is a `MediaError` with the file."""
    if not os.path.isfile(path):  # also for a name that no file can have
        raise tpo.MediaError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:  # before Pillow, which has a limit of its own
            start = file.read(24)
        if start.startswith(_PNG):
            width, height = struct.unpack(">II", start[16:])
            rle.check_pixels("its size", height, width, max_pixels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, and on more pixels than it likes
            with Image.open(path, formats=["PNG"]) as image:
                yield image
    except tpo.MediaError:
        raise
    except Exception as error:  # Pillow, zlib and struct each have their own
        reason = str(error) or type(error).__name__
        raise tpo.MediaError(f"{path}: cannot be read as a mask: {reason}") from error


def as_mask(mask: Any) -> np.ndarray:
    """A mask as bool [H, W]: an array, a tensor, or RLE."""
    if isinstance(mask, Mapping):
        return rle.decode(mask, None)
    return np.asarray(mask.detach().cpu() if hasattr(mask, "detach") else mask) > 0


def box_of(mask: Any) -> Box | None:
    """The box [x1, y1, x2, y2] around a mask [H, W], along its pixels' outer edges, 0 to 1; None where it is empty."""
    mask = np.asarray(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    height, width = mask.shape
    corners = columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
    return [float(corner) for corner in corners]
