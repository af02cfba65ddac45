"""Boxes over video: LaSOT and GOT-10k, laid out as they are published."""

from __future__ import annotations

import configparser
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import tpo_plugin as tpo
from tpo_head_mask.formats.common import (
    FrameList,
    Sample,
    Size,
    box_target,
    files,
    folder,
    guarded,
    image_size,
    read_text,
    tracking,
)
from tpo_head_mask.masks import Box

LASOT_FPS = 30.0
GOT10K_FPS = 10.0


def lasot(root: Path, split: str | None) -> Iterator[Sample]:
    """LaSOT: <category>/<sequence>/ with img/, groundtruth.txt, full_occlusion.txt and out_of_view.txt.

    With a split, "train" or "test", the sequences that training_set.txt or testing_set.txt lists.
    """
    found = sorted(path.parent for path in (*root.glob("*/groundtruth.txt"), *root.glob("*/*/groundtruth.txt")))
    if not found:
        raise tpo.TPOError(f"{root}: holds no <category>/<sequence>/groundtruth.txt; expected LaSOT")
    if split is not None:
        if split not in ("train", "test"):
            raise tpo.TPOError(f"split is {split!r}; LaSOT has 'train' and 'test'")
        names = set(read_text(root / f"{split}ing_set.txt", "names of sequences").split())
        found = [path for path in found if path.name in names]
    for path in found:
        yield from guarded(path.name, partial(_lasot_sequence, path))


def _lasot_sequence(path: Path) -> Iterator[Sample]:
    marks = [
        [flag.strip() == "1" for flag in read_text(path / name, "a flag 0 or 1 for each frame").split(",")]
        for name in ("full_occlusion.txt", "out_of_view.txt")
    ]
    if len(marks[0]) != len(marks[1]):
        raise tpo.MediaError(f"{path}: full_occlusion.txt has {len(marks[0])} flags, out_of_view.txt {len(marks[1])}")
    absent = [any(both) for both in zip(*marks, strict=True)]
    yield _sequence(path.name, path, files(path / "img", ".jpg"), LASOT_FPS, absent)


def got10k(root: Path, split: str | None) -> Iterator[Sample]:
    """GOT-10k: <split>/list.txt and <split>/<sequence>/ with frames, groundtruth.txt, absence.label, meta_info.ini."""
    base = folder(root / (split or "train"), "a split of GOT-10k, with list.txt")
    for name in read_text(base / "list.txt", "names of sequences").split():
        yield from guarded(name, partial(_got10k_sequence, base / name))


def _got10k_sequence(path: Path) -> Iterator[Sample]:
    if not path.is_dir():
        raise tpo.MediaError(f"{path}: no such folder")
    flags = read_text(path / "absence.label", "a flag 0 or 1 for each frame (split test is published without it)")
    absent = [flag == "1" for flag in flags.split()]
    yield _sequence(path.name, path, files(path, ".jpg"), _fps(path / "meta_info.ini"), absent)


def _fps(path: Path) -> float:
    """Of the frames, from an entry like `anno_fps: 10Hz`; GOT-10k's own rate where there is none."""
    meta = configparser.ConfigParser(interpolation=None, strict=False)
    if not path.is_file():
        return GOT10K_FPS
    try:
        meta.read_string(read_text(path, "a sequence's meta information"))
        given = meta.get("METAINFO", "anno_fps", fallback=f"{GOT10K_FPS}")
        return float(given.lower().removesuffix("hz"))
    except (configparser.Error, ValueError) as error:
        raise tpo.RecordError(f"cannot be understood: {error}", file=str(path)) from error


def _sequence(name: str, path: Path, images: list[Path], fps: float, absent: list[bool]) -> Sample:
    boxes_px = _boxes_px(path / "groundtruth.txt")
    if not 0 < len(images) == len(boxes_px) == len(absent):
        raise tpo.MediaError(
            f"{path}: has {len(images)} frames, {len(boxes_px)} boxes in groundtruth.txt and {len(absent)} flags; "
            "expected as many"
        )
    size = image_size(images[0])
    boxes = [None if gone else _share(box, size) for box, gone in zip(boxes_px, absent, strict=True)]
    video = FrameList.at_rate(name, images, fps)
    return tracking(name, video, box_target(boxes, video.times_s))


def _boxes_px(path: Path) -> list[list[float]]:
    """Lines `x, y, width, height`, in pixels."""
    boxes = []
    for number, line in enumerate(read_text(path, "a box for each frame").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            box = [float(value) for value in line.replace("\t", ",").split(",")]
        except ValueError:
            box = []
        if len(box) != 4 or not all(math.isfinite(value) for value in box):
            raise tpo.RecordError(f"is {line!r:.80}; expected x,y,width,height in pixels", file=str(path), line=number)
        boxes.append(box)
    return boxes


def _share(box: list[float], size: Size) -> Box | None:
    """From x, y, width, height in pixels to corners in shares, clipped to the image; None where nothing is left."""
    left, top, width, height = box
    corners = left / size[1], top / size[0], (left + width) / size[1], (top + height) / size[0]
    clipped = [min(1.0, max(0.0, value)) for value in corners]
    return clipped if clipped[0] < clipped[2] and clipped[1] < clipped[3] else None
