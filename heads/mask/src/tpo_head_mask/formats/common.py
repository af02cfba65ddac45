"""What readers of published formats make and share. A sample that cannot be used becomes a `Skipped` with its reason; a
dataset that is not laid out as it should be is an error."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import tpo_plugin as tpo
from tpo_head_mask import rle
from tpo_head_mask.jf import object_ids
from tpo_head_mask.masks import Box, box_of, check_size, check_task, read_ids
from tpo_plugin.json_file import parse_json

HEAD = "mask"
Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class FrameList:
    """A video whose frames are image files."""

    name: str
    files: tuple[Path, ...]
    times_s: tuple[float, ...]
    """When each frame is first shown, ascending from 0."""
    end_s: float

    @classmethod
    def at_rate(cls, name: str, files: Sequence[Path], fps: float) -> FrameList:
        """Frames at a constant rate."""
        times_s = [round(index / fps, 6) for index in range(len(files) + 1)]
        return cls(name, tuple(files), tuple(times_s[:-1]), times_s[-1])


@dataclass(frozen=True)
class Found:
    """One record to be."""

    id: str
    medium: Path | FrameList
    question: str
    answer: str
    tasks: tuple[dict[str, Any], ...]
    """In the order of the placeholders `<mask>` in question and answer."""


@dataclass(frozen=True)
class Skipped:
    """A sample that cannot be used."""

    id: str
    reason: str


Sample = Found | Skipped


def guarded(name: str, make: Callable[[], Iterable[Sample]]) -> Iterator[Sample]:
    """The samples that `make` gives; where it raises `MediaError`, what is left of them is skipped as one."""
    try:
        yield from make()
    except tpo.MediaError as error:
        yield Skipped(name, str(error))


def referring(id: str, medium: Path | FrameList, phrase: str, targets: Sequence[dict[str, Any]]) -> Sample:
    """A question by words; one mask in the answer for each object."""
    phrase = phrase.strip().rstrip(".")
    return _checked(Found(id, medium, f"Segment {phrase}.", _answer(len(targets)), tuple(targets)))


def tracking(id: str, medium: Path | FrameList, target: dict[str, Any]) -> Sample:
    """A question by the box of the first frame that shows the object."""
    for index, item in enumerate(target.get("masks") or target["boxes"]):
        if item is not None:
            box = box_of(rle.decode(item)) if "masks" in target else item
            given = {"head": HEAD, "box": box, "time": target["times"][index]}
            return _checked(Found(id, medium, "Track the object in <mask>.", _answer(1), (given, target)))
    return Skipped(id, "the object is in no annotated frame")


def mask_target(masks: Sequence[rle.RLE | None], times_s: Sequence[float] | None = None) -> dict[str, Any]:
    """A target task; an empty mask becomes null where the task has times (a video)."""
    if times_s is None:
        return {"head": HEAD, "masks": list(masks)}
    present = [mask if mask is not None and rle.area(mask) else None for mask in masks]
    return {"head": HEAD, "masks": present, "times": list(times_s)}


def box_target(boxes: Sequence[Box | None], times_s: Sequence[float]) -> dict[str, Any]:
    """A target task of boxes."""
    return {"head": HEAD, "boxes": list(boxes), "times": list(times_s)}


def _answer(num: int) -> str:
    return "Here it is: <mask>." if num == 1 else f"Here they are: {', '.join(['<mask>'] * num)}."


def _checked(found: Found) -> Sample:
    try:
        for task in found.tasks:
            check_task(task)
    except ValueError as error:
        return Skipped(found.id, str(error))
    return found


def label_masks(maps: Sequence[Path], images: Sequence[Path]) -> dict[int, list[rle.RLE | None]]:
    """From maps of object ids, one for each image, to each object's masks. Raises `MediaError`."""
    found: dict[int, list[rle.RLE | None]] = {}
    for index, (path, image) in enumerate(zip(maps, images, strict=True)):
        labels = read_ids(path)
        check_size(str(path), labels, image_size(image))
        for name in object_ids(labels):
            found.setdefault(name, [None] * len(maps))[index] = rle.encode(labels == name)
    return found


def image_size(path: Path) -> Size:
    """Of an image file, of which the header alone is read. Raises `MediaError`."""
    if not os.path.isfile(path):  # also for a name that no file can have
        raise tpo.MediaError(f"{path}: no such file")
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:  # Pillow, zlib and struct each have their own
        raise tpo.MediaError(f"{path}: cannot be read as an image: {str(error) or type(error).__name__}") from error


def folder(path: Path, what: str) -> Path:
    """`path`, which must be a folder."""
    if not path.is_dir():
        raise tpo.TPOError(f"{path}: no such folder; expected {what}")
    return path


def files(path: Path, *suffixes: str) -> list[Path]:
    """The files of a folder that end so, by name. Raises `MediaError` where there is no folder."""
    if not path.is_dir():
        raise tpo.MediaError(f"{path}: no such folder")
    return sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes and not file.name.startswith("."))


def read_text(path: Path, what: str) -> str:
    """A text file's content. Raises `RecordError`."""
    try:
        return path.read_text(encoding="utf-8", errors="strict")
    except UnicodeDecodeError:
        return path.read_text(encoding="latin-1")  # Ref-DAVIS's expressions are
    except OSError as error:
        raise tpo.RecordError(f"cannot be read ({error.strerror}); expected {what}", file=str(path)) from error


def read_json(path: Path, what: str) -> Any:
    """A JSON file's content. Raises `RecordError`."""
    try:
        return parse_json(read_text(path, what))
    except ValueError as error:
        if isinstance(error, tpo.TPOError):
            raise
        raise tpo.RecordError(f"is not valid JSON: {error}", file=str(path)) from error


def field(data: Any, name: str, kind: type | tuple[type, ...], file: Path, where: str = "") -> Any:
    """`data[name]`, which must be of that kind. Raises `RecordError` with file and field."""
    value = data.get(name) if isinstance(data, dict) else None
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        words = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}
        expected = " or ".join(words[k] for k in kinds)
        given = "missing" if value is None else f"{value!r:.60}"
        raise tpo.RecordError(f"is {given}; expected {expected}", file=str(file), field=f"{where}.{name}".lstrip("."))
    return value
