"""What formats of masks and tracks share: how entries are asked, and values and files of a source.

What makes an entry unusable is a `MediaError` (masks of another size than their image, a file that is not there) or a
`Fault` that names the field.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import tpo_plugin as tpo
from tpo_plugin.convert import MISSING, Entry, Format, FrameList, Place, worded
from tpo_plugin.json_file import parse_json

# What works on pixels (rle, masks, jf, PIL) is imported where it is used, so that listing the formats takes no time.

HEAD = "mask"
VOID = 255
"""In the maps of DAVIS and YouTube-VOS: pixels that are left out of scoring."""
Size = tuple[int, int]
"""(height, width) in pixels."""
RLE = dict[str, Any]
Frames = list[RLE | None]
Box = list[float]
"""[x1, y1, x2, y2], 0 to 1 of the image."""

PICTURE_QUESTIONS = (
    "Segment {phrase}.",
    "Mark every pixel of {phrase}.",
    "Outline {phrase} in the picture.",
    "Give a mask of {phrase}.",
    "Which pixels belong to {phrase}?",
)
VIDEO_QUESTIONS = (
    "Segment {phrase} in the video.",
    "Follow {phrase} through the video.",
    "Show the way that {phrase} takes.",
    "Mark {phrase} in every frame.",
    "Give the track of {phrase}.",
)
TRACKING_QUESTIONS = (
    "Track the object in <mask>.",
    "Follow what <mask> shows through the video.",
    "Where does the object in <mask> go?",
    "Mark the object of <mask> in every frame.",
    "The box <mask> shows an object; keep track of it.",
)
ANSWERS = ("Here it is: <mask>.", "This is it: <mask>.", "It is marked here: <mask>.")
ANSWERS_FOR_MANY = ("Here they are: {masks}.", "These are they: {masks}.", "They are marked here: {masks}.")


@dataclass(kw_only=True)
class Masks(Format):
    """A layout of masks or tracks in a folder."""

    heads = (HEAD,)

    root: Annotated[Path, typer.Argument(help="Folder of the data set, as it is published.")]

    def __post_init__(self) -> None:
        folder(self.root, "the data set")


def referring(id: str, medium: Path | FrameList, phrase: str, targets: Sequence[dict[str, Any]]) -> Entry:
    """A question by words; one mask in the answer for each object."""
    is_picture = isinstance(medium, Path) and "times" not in targets[0]
    wordings = PICTURE_QUESTIONS if is_picture else VIDEO_QUESTIONS
    return asked(id, medium, worded(wordings, id, phrase=phrase.strip().rstrip(".")), targets)


def asked(id: str, medium: Path | FrameList, question: str, targets: Sequence[dict[str, Any]]) -> Entry:
    """A question in words of its own; one mask in the answer for each object."""
    kind = "images" if isinstance(medium, Path) and "times" not in targets[0] else "videos"
    return Entry(id, [question, _answer(id, len(targets))], list(targets), **{kind: [medium]})  # type: ignore[arg-type]


def tracking(id: str, medium: Path | FrameList, target: dict[str, Any]) -> Entry:
    """A question by the box of the first frame that shows the object. Raises `MediaError` where none does."""
    from tpo_head_mask import rle
    from tpo_head_mask.masks import box_of

    for index, item in enumerate(target.get("masks") or target["boxes"]):
        if item is not None:
            box = box_of(rle.decode(item)) if "masks" in target else item
            return tracked(id, medium, given_box(box, target["times"][index]), target)
    raise tpo.MediaError(f"{id}: the object is in no annotated frame")


def tracked(id: str, medium: Path | FrameList, given: dict[str, Any], target: dict[str, Any] | None) -> Entry:
    """A question by a box; without a target a prompt."""
    turns, tasks = [worded(TRACKING_QUESTIONS, id)], [given]
    if target is not None:
        turns, tasks = [*turns, _answer(id, 1)], [given, target]
    return Entry(id, turns, tasks, videos=[medium])


def given_box(box: Box | None, time_s: float) -> dict[str, Any]:
    """The task of a box in a question."""
    return {"head": HEAD, "box": box, "time": time_s}


def mask_target(masks: Sequence[RLE | None], times_s: Sequence[float] | None = None) -> dict[str, Any]:
    """A target task; an empty mask becomes null where the task has times (a video)."""
    if times_s is None:
        return {"head": HEAD, "masks": list(masks)}
    from tpo_head_mask import rle

    present = [mask if mask is not None and rle.area(mask) else None for mask in masks]
    return {"head": HEAD, "masks": present, "times": list(times_s)}


def box_target(boxes: Sequence[Box | None], times_s: Sequence[float]) -> dict[str, Any]:
    """A target task of boxes."""
    return {"head": HEAD, "boxes": list(boxes), "times": list(times_s)}


def _answer(id: str, num: int) -> str:
    if num == 1:
        return worded(ANSWERS, id)
    return worded(ANSWERS_FOR_MANY, id, masks=", ".join(["<mask>"] * num))


# -- files and values --------------------------------------------------------------------------------------------------


def label_masks(maps: Sequence[Path], images: Sequence[Path], ignored: Collection[int] = ()) -> dict[int, Frames]:
    """From maps of object ids, one for each image, to each object's masks. Raises `MediaError`."""
    from tpo_head_mask import rle
    from tpo_head_mask.jf import object_ids
    from tpo_head_mask.masks import check_size, read_ids

    found: dict[int, Frames] = {}
    for index, (path, image) in enumerate(zip(maps, images, strict=True)):
        labels = read_ids(path)
        check_size(str(path), labels, image_size(image))
        for name in object_ids(labels):
            if name not in ignored:
                found.setdefault(name, [None] * len(maps))[index] = rle.encode(labels == name)
    return found


def check_masks(frames: Any, num: int, size: Size, place: Place) -> Frames:
    """A list of RLE or null, one for each of `num` frames of that size. Raises `Fault`, or `MediaError` for sizes."""
    if not isinstance(frames, (list, tuple)) or len(frames) != num:
        given = f"{len(frames)} entries" if isinstance(frames, (list, tuple)) else shown(frames)
        raise place.fault(given, f"a list of RLE or null for each of the {num} frames")
    for index, mask in enumerate(frames):
        if mask is not None:
            check_rle(mask, size, place.at(index))
    return list(frames)


def check_rle(mask: Any, size: Size, place: Place) -> None:
    """Raises `Fault` for what is no RLE, `MediaError` where it is of another size than its image."""
    from tpo_head_mask import rle

    try:
        rle.check(mask)
    except tpo.TPOError as error:
        raise place.fault(mask, f"COCO RLE; {error}") from error
    if tuple(mask["size"]) != size:
        raise tpo.MediaError(f"{place}: is of size {list(mask['size'])}, its image of {list(size)}")


def image_size(path: Path) -> Size:
    """Of an image file, of which the header alone is read. Raises `MediaError`."""
    if not os.path.isfile(path):  # also for a name that no file can have
        raise tpo.MediaError(f"{path}: no such file")
    from PIL import Image

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


def frames_of(path: Path) -> list[Path]:
    """The pictures of a video in a folder, by name; at least one. Raises `MediaError`."""
    found = files(path, ".jpg", ".jpeg", ".png")
    if not found:
        raise tpo.MediaError(f"{path}: holds no frame")
    return found


def read_text(path: Path, what: str, fallback: str = "latin-1") -> str:
    """A text file's content, UTF-8 or else in the `fallback` encoding. Raises `RecordError`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return path.read_text(encoding=fallback)  # some of Ref-DAVIS and ReasonSeg
    except OSError as error:
        raise tpo.RecordError(f"cannot be read ({error.strerror}); expected {what}", file=str(path)) from error


def read_document(path: Path, what: str, fallback: str = "latin-1") -> Any:
    """A JSON file's content. Raises `RecordError`."""
    try:
        return parse_json(read_text(path, what, fallback))
    except tpo.TPOError:
        raise
    except ValueError as error:
        raise tpo.RecordError(f"is not valid JSON: {error}", file=str(path)) from error


def field(data: Any, name: str, kind: type | tuple[type, ...], place: Place) -> Any:
    """`data[name]`, which must be of that kind. Raises `Fault`."""
    value = data.get(name) if isinstance(data, dict) else None
    odd = (isinstance(value, bool) and kind is not bool) or (isinstance(value, float) and not math.isfinite(value))
    if not isinstance(value, kind) or odd:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        words = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}
        raise place.at(name).fault(shown(value), " or ".join(words[k] for k in kinds))
    return value


def whole_number(text: str) -> int | None:
    """What a text of at most nine digits says."""
    return int(text) if text.isdecimal() and len(text) < 10 else None


def shown(value: Any) -> Any:
    """A value in a fault."""
    return MISSING if value is None else value
