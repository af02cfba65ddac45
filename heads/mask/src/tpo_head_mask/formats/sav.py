"""SA-V, and Ref-SAV, whose texts are about its objects."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import tpo_plugin as tpo
from tpo_head_mask.formats.common import (
    HEAD,
    RLE,
    Frames,
    Masks,
    check_rle,
    field,
    files,
    folder,
    frames_of,
    label_masks,
    mask_target,
    read_document,
    referring,
    shown,
    tracking,
    whole_number,
)
from tpo_plugin.convert import Entry, Format, FrameList, Place, Report

FPS, EVERY = 24.0, 4
"""Of the videos; every fourth frame is annotated."""


@dataclass(kw_only=True)
class SAV(Masks):
    """SA-V: VIDEO.mp4 with VIDEO_manual.json and VIDEO_auto.json, or JPEGImages_24fps and Annotations_6fps.

    Layout as its README and tools have it; give the folder of one split. Each object is tracked from the box of its
    first frame.
    """

    def entries(self, report: Report) -> Iterator[Entry]:
        if (self.root / "Annotations_6fps").is_dir():
            videos = sorted(path for path in (self.root / "Annotations_6fps").iterdir() if path.is_dir())
            for path in report.track(videos):
                with report.faults():
                    yield from self._folders(self.root / "JPEGImages_24fps" / path.name, path, report)
            return
        annotations = sorted([*self.root.rglob("*_manual.json"), *self.root.rglob("*_auto.json")])
        if not annotations:
            raise tpo.TPOError(f"{self.root}: holds neither *_manual.json and *_auto.json, nor Annotations_6fps")
        for path in report.track(annotations):
            with report.faults():
                masklets = Masklets(path)
                video = path.with_name(f"{masklets.name}.mp4")
                if not video.is_file():
                    raise tpo.MediaError(f"{video}: no such file")
                for column, number in enumerate(masklets.ids):
                    with report.faults():
                        target = mask_target(masklets.column(column), masklets.times_s)
                        yield tracking(f"sa-v:{path.stem}/{number}", video, target)

    def _folders(self, frames: Path, annotations: Path, report: Report) -> Iterator[Entry]:
        images = frames_of(frames)
        video = FrameList.at_rate(frames.name, images, FPS)
        starts = {image.stem: (image, start) for image, start in zip(images, video.times_s, strict=True)}
        for item in sorted(path for path in annotations.iterdir() if path.is_dir()):
            with report.faults():
                maps = files(item, ".png")
                unknown = [path.name for path in maps if path.stem not in starts]
                if unknown:
                    raise tpo.MediaError(f"{item}: {unknown[0]} has no frame in {frames}")
                masks = label_masks(maps, [starts[path.stem][0] for path in maps])
                if len(masks) > 1:
                    raise tpo.MediaError(f"{item}: holds the values {[0, *sorted(masks)]}, expected two")
                times_s = [starts[path.stem][1] for path in maps]
                target = mask_target(next(iter(masks.values()), [None] * len(maps)), times_s)
                yield tracking(f"sa-v:{frames.name}/{item.name}", video, target)


@dataclass(kw_only=True)
class RefSAV(Format):
    """Ref-SAV of Sa2VA: {video: video_path, anno_path, objects {column: formated}}, beside SA-V's training videos.

    Layout as Sa2VA's loader reads it (its field is spelled so), never seen.
    """

    heads = (HEAD,)

    source: Annotated[Path, typer.Argument(help="The annotations: sam_v_final_v3.json.")]
    videos: Annotated[Path, typer.Option(help="Folder that video_path and anno_path start from.")]

    def entries(self, report: Report) -> Iterator[Entry]:
        folder(self.videos, "the videos of SA-V")
        root = Place(str(self.source))
        document = read_document(self.source, "the annotations of Ref-SAV")
        if not isinstance(document, dict):
            raise root.fault(document, "an object of videos")
        for name, entry in report.track(list(document.items())):
            place = root.at(name)
            with report.faults():
                video = self.videos / field(entry, "video_path", str, place)
                if not video.is_file():
                    raise tpo.MediaError(f"{video}: no such file")
                masklets = Masklets(self.videos / field(entry, "anno_path", str, place))
                for key, about in field(entry, "objects", dict, place).items():
                    with report.faults():
                        at = place.at("objects", key)
                        column = whole_number(key)
                        if column is None or column >= len(masklets.ids):
                            raise at.fault(key, f"a column of the {len(masklets.ids)} masklets in {masklets.path.name}")
                        target = mask_target(masklets.column(column), masklets.times_s)
                        yield referring(f"ref-sav:{name}/{key}", video, field(about, "formated", str, at), [target])


class Masklets:
    """The objects of a video, in a JSON file of SA-V: RLE by annotated frame, then by object."""

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, Place(str(path))
        data = read_document(path, "the masklets of SA-V")
        self.name: str = field(data, "video_id", str, self.place)
        height, width = (int(field(data, f"video_{key}", (int, float), self.place)) for key in ("height", "width"))
        self.size = height, width
        self.frames: list[Any] = field(data, "masklet", list, self.place)
        self.ids: list[Any] = field(data, "masklet_id", list, self.place)
        self.times_s = [round(index * EVERY / FPS, 6) for index in range(len(self.frames))]
        num = data.get("video_frame_count")
        num = num if num is None else field(data, "video_frame_count", (int, float), self.place)
        if num is not None and len(self.frames) != math.ceil(num / EVERY):
            expected = f"masks of every fourth of the {num} frames, {math.ceil(num / EVERY)}"
            raise self.place.at("masklet").fault(f"{len(self.frames)} frames", expected)
        for index, items in enumerate(self.frames):
            if not isinstance(items, list) or len(items) != len(self.ids):
                given = f"{len(items)} masks" if isinstance(items, list) else shown(items)
                raise self.place.at("masklet", index).fault(given, f"one for each of the {len(self.ids)} masklets")

    def column(self, column: int) -> Frames:
        """The masks of one object. Raises `Fault`, or `MediaError` for another size than the video's."""
        masks: list[RLE | None] = [items[column] for items in self.frames]
        for index, mask in enumerate(masks):
            if mask is not None:
                check_rle(mask, self.size, self.place.at("masklet", index, column))
        return masks
