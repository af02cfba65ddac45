"""Boxes over video: LaSOT and GOT-10k, laid out as they are published."""

from __future__ import annotations

import configparser
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import typer

import tpo_plugin as tpo
from tpo_head_mask.formats.common import (
    Box,
    Masks,
    Size,
    box_target,
    files,
    folder,
    given_box,
    image_size,
    read_text,
    tracked,
    tracking,
)
from tpo_plugin.convert import Entry, FrameList, Place, Report

LASOT_FPS = 30.0
GOT10K_FPS = 10.0


class Tracks(Masks):
    """Records of boxes, which the mask head learns from with `losses: [pixel, prompt]` or `[prompt]`."""

    settings: ClassVar = {"mask": {"losses": ["pixel", "prompt"]}}

    def sequence(
        self, id: str, path: Path, images: list[Path], fps: float, absent: list[bool], report: Report
    ) -> Entry:
        """A sequence whose frames are `images`, tracked from its first box."""
        boxes_px = _boxes_px(path / "groundtruth.txt")
        if not 0 < len(images) == len(boxes_px) == len(absent):
            raise tpo.MediaError(
                f"{path}: has {len(images)} frames, {len(boxes_px)} boxes in groundtruth.txt and {len(absent)} flags; "
                "expected as many"
            )
        size, boxes = image_size(images[0]), []
        for gone, (place, box) in zip(absent, boxes_px, strict=True):
            boxes.append(None if gone else _share(box, size, place, report))
        video = FrameList.at_rate(path.name, images, fps)
        return tracking(id, video, box_target(boxes, video.times_s))


@dataclass(kw_only=True)
class LaSOT(Tracks):
    """LaSOT: CATEGORY/SEQUENCE/ with img/, groundtruth.txt, full_occlusion.txt and out_of_view.txt.

    Layout as its toolkits read it. Numbers are kept as they are (the sets count pixels from 1, and so do its scorers).
    """

    split: Annotated[
        Literal["all", "train", "test"], typer.Option(help="Those that training_set.txt or testing_set.txt lists.")
    ] = "all"

    def entries(self, report: Report) -> Iterator[Entry]:
        found = sorted(p.parent for p in (*self.root.glob("*/groundtruth.txt"), *self.root.glob("*/*/groundtruth.txt")))
        if not found:
            raise tpo.TPOError(f"{self.root}: holds no CATEGORY/SEQUENCE/groundtruth.txt; expected LaSOT")
        if self.split != "all":
            names = set(read_text(self.root / f"{self.split}ing_set.txt", "names of sequences").split())
            found = [path for path in found if path.name in names]
        for path in report.track(found):
            with report.faults():
                marks = [self._flags(path / name) for name in ("full_occlusion.txt", "out_of_view.txt")]
                if len(marks[0]) != len(marks[1]):
                    raise tpo.MediaError(
                        f"{path}: full_occlusion.txt has {len(marks[0])} flags, out_of_view.txt {len(marks[1])}"
                    )
                absent = [any(both) for both in zip(*marks, strict=True)]
                images = files(path / "img", ".jpg")
                yield self.sequence(f"lasot:{path.name}", path, images, LASOT_FPS, absent, report)

    def _flags(self, path: Path) -> list[bool]:
        return [flag.strip() == "1" for flag in read_text(path, "a flag 0 or 1 for each frame").split(",")]


@dataclass(kw_only=True)
class GOT10k(Tracks):
    """GOT-10k: SPLIT/list.txt and SPLIT/SEQUENCE/ with frames, groundtruth.txt, absence.label, meta_info.ini.

    Layout as its toolkit reads it. Of the test split the first box alone is published: its records are prompts.
    """

    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Part of the data set.")] = "train"

    def entries(self, report: Report) -> Iterator[Entry]:
        base = folder(self.root / self.split, "a split of GOT-10k, with list.txt")
        for name in report.track(read_text(base / "list.txt", "names of sequences").split()):
            with report.faults():
                path, id = base / name, f"got-10k:{name}"
                if not path.is_dir():
                    raise tpo.MediaError(f"{path}: no such folder")
                images, fps = files(path, ".jpg"), _fps(path / "meta_info.ini")
                if self.split == "test":
                    yield self._prompt(id, path, images, fps, report)
                else:
                    flags = read_text(path / "absence.label", "a flag 0 or 1 for each frame").split()
                    yield self.sequence(id, path, images, fps, [flag == "1" for flag in flags], report)

    def _prompt(self, id: str, path: Path, images: list[Path], fps: float, report: Report) -> Entry:
        boxes_px = _boxes_px(path / "groundtruth.txt")
        if not images or not boxes_px:
            raise tpo.MediaError(f"{path}: has {len(images)} frames and {len(boxes_px)} boxes; expected a first box")
        place, box = boxes_px[0]
        given = given_box(_share(box, image_size(images[0]), place, report), 0.0)
        return tracked(id, FrameList.at_rate(path.name, images, fps), given, None)


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


def _boxes_px(path: Path) -> list[tuple[Place, list[float]]]:
    """Lines `x, y, width, height`, in pixels."""
    boxes = []
    for number, line in enumerate(read_text(path, "a box for each frame").splitlines(), start=1):
        if line.strip():
            place = Place(str(path), number)
            try:
                box = [float(value) for value in line.replace("\t", ",").split(",")]
            except ValueError:
                box = []
            if len(box) != 4 or not all(math.isfinite(value) for value in box):
                raise place.fault(line, "x,y,width,height in pixels")
            boxes.append((place, box))
    return boxes


def _share(box: list[float], size: Size, place: Place, report: Report) -> Box:
    """From x, y, width, height in pixels to corners in shares, clipped to the image. Raises `Fault` for no area."""
    left, top, width, height = box
    if width <= 0 or height <= 0:
        raise place.fault(box, "a width and height above 0, where the flags say that the object is to be seen")
    corners = left / size[1], top / size[0], (left + width) / size[1], (top + height) / size[0]
    clipped = [min(1.0, max(0.0, value)) for value in corners]
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        raise place.fault(box, f"a box within its frame of {size[1]} x {size[0]} pixels")
    if tuple(clipped) != corners:
        report.change("boxes that stuck out of their frame were clipped", place)
    return clipped
