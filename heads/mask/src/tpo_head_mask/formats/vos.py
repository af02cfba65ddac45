"""Masks over frames: DAVIS, Ref-DAVIS, YouTube-VOS, Ref-YouTube-VOS and MeViS, laid out as they are published."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import tpo_plugin as tpo
from tpo_head_mask.formats.common import (
    VOID,
    Frames,
    Masks,
    check_masks,
    field,
    files,
    folder,
    frames_of,
    image_size,
    label_masks,
    mask_target,
    read_document,
    read_text,
    referring,
    shown,
    tracking,
    whole_number,
)
from tpo_plugin.convert import Entry, FrameList, Place, Report, read_pickle

DAVIS_FPS = 24.0
YOUTUBE_FPS = 30.0
"""Of the videos that YouTube-VOS's frame numbers count."""
MEVIS_FPS = 6.0
"""Nominal: its videos come from several sets, and their rates are not published."""

_DAVIS_EXPRESSION = re.compile(r'(\S+)\s+(\d{1,9})\s+"?(.*?)"?\s*')
Split = Annotated[str, typer.Option(help="Part of the data set.")]


@dataclass(kw_only=True)
class DAVIS(Masks):
    """DAVIS 2017: ImageSets/2017, JPEGImages/480p, Annotations/480p; each object tracked from its first box.

    Layout as its evaluation code reads it.
    """

    split: Split = "train"

    def entries(self, report: Report) -> Iterator[Entry]:
        for name in report.track(self.sequences()):
            with report.faults():
                video, masks = self.sequence(name)
                for number, frames in sorted(masks.items()):
                    with report.faults():
                        yield tracking(f"davis:{name}/{number}", video, mask_target(frames, video.times_s))

    def sequences(self) -> list[str]:
        lists = folder(
            self.root / "ImageSets" / "2017", "DAVIS 2017: ImageSets/2017, JPEGImages/480p, Annotations/480p"
        )
        path = lists / f"{self.split}.txt"
        if not path.is_file():
            raise tpo.TPOError(f"{path}: no such file; splits are {[file.stem for file in files(lists, '.txt')]}")
        return read_text(path, "names of sequences").split()

    def sequence(self, name: str) -> tuple[FrameList, dict[int, Frames]]:
        images = frames_of(self.root / "JPEGImages" / "480p" / name)
        maps = [self.root / "Annotations" / "480p" / name / f"{image.stem}.png" for image in images]
        return FrameList.at_rate(name, images, DAVIS_FPS), label_masks(maps, images, {VOID})


@dataclass(kw_only=True)
class RefDAVIS(DAVIS):
    """Ref-DAVIS 2017: DAVIS with davis_text_annotations/*.txt, lines `SEQUENCE OBJECT "expression"`.

    Layout as ReferFormer's converter reads it. It counts objects in the unsupervised masks: give these as Annotations.
    """

    def entries(self, report: Report) -> Iterator[Entry]:
        wanted = set(self.sequences())
        texts = folder(self.root / "davis_text_annotations", "the expressions of Ref-DAVIS, *.txt")
        expressions: dict[str, list[tuple[str, int, str]]] = {}
        for file in files(texts, ".txt"):
            for number, line in enumerate(read_text(file, "expressions").splitlines(), start=1):
                match = _DAVIS_EXPRESSION.fullmatch(line.strip())
                if line.strip() and match is None:
                    raise Place(str(file), number).fault(line, 'SEQUENCE OBJECT "text"')
                if match is not None and match[1] in wanted:
                    expressions.setdefault(match[1], []).append((f"{file.stem}/{number}", int(match[2]), match[3]))
        if not expressions:
            raise tpo.TPOError(f"{texts}: holds no expression for a sequence of split {self.split!r}")
        for name, items in report.track(sorted(expressions.items())):
            with report.faults():
                video, masks = self.sequence(name)
                for place, number, text in items:
                    with report.faults():
                        yield _expression(f"ref-davis:{name}/{number}/{place}", video, text, number, masks)


@dataclass(kw_only=True)
class YouTubeVOS(Masks):
    """YouTube-VOS: SPLIT/JPEGImages, SPLIT/Annotations; each object tracked from the box of its first frame.

    By the documentation and Ref-YouTube-VOS's loader, never seen. meta.json, which may be missing from the download, is
    not needed; objects are those of the maps.
    """

    split: Split = "train"

    def entries(self, report: Report) -> Iterator[Entry]:
        base = folder(self.root / self.split, "a split of YouTube-VOS: JPEGImages, Annotations")
        for path in report.track(sorted(folder(base / "Annotations", "maps of object ids").iterdir())):
            with report.faults():
                numbers = [file.stem for file in files(path, ".png")]
                video, masks = youtube_video(base, path.name, numbers, Place(str(path)))
                for number, frames in sorted(masks.items()):
                    with report.faults():
                        yield tracking(f"youtube-vos:{path.name}/{number}", video, mask_target(frames, video.times_s))


@dataclass(kw_only=True)
class RefYouTubeVOS(Masks):
    """Ref-YouTube-VOS: meta_expressions/SPLIT/meta_expressions.json, SPLIT/JPEGImages, SPLIT/Annotations.

    Layout as ReferFormer reads it. Masks are those of the PNGs, or those of a mask_dict.pkl, in which expressions are
    counted: UniPixel counts in the order of the file, Sa2VA over sorted expression ids, and from eleven expressions on
    they differ.
    """

    split: Split = "train"
    mask_dict: Annotated[Path | None, typer.Option(help="mask_dict.pkl, in place of the PNGs.")] = None
    counted: Annotated[Literal["unipixel", "sa2va"] | None, typer.Option(help="Whose mask_dict.pkl it is.")] = None

    def entries(self, report: Report) -> Iterator[Entry]:
        path = self.root / "meta_expressions" / self.split / "meta_expressions.json"
        root = Place(str(path))
        videos = field(read_document(path, "the expressions of Ref-YouTube-VOS"), "videos", dict, root)
        if (self.mask_dict is None) != (self.counted is None):
            raise tpo.TPOError("--mask-dict and --counted go together: the file, and how it counts expressions")
        masks = read_pickle(self.mask_dict) if self.mask_dict is not None else None
        if masks is None:
            what = "maps of object ids (the other splits are published without them)"
            folder(self.root / self.split / "Annotations", what)
        number = 0
        for name, entry in report.track(list(videos.items())):
            place = root.at("videos", name)
            expressions = field(entry, "expressions", dict, place)
            first, number = number, number + len(expressions)
            with report.faults():
                frames = field(entry, "frames", list, place)
                if masks is None:
                    yield from self._by_maps(name, frames, expressions, place, report)
                else:
                    yield from self._by_numbers(name, frames, expressions, place, report, masks, first)

    def _by_maps(
        self, name: str, frames: list[Any], expressions: dict[str, Any], place: Place, report: Report
    ) -> Iterator[Entry]:
        video, masks = youtube_video(self.root / self.split, name, frames, place.at("frames"))
        for key, item in expressions.items():
            with report.faults():
                at = place.at("expressions", key)
                text, number = field(item, "exp", str, at), field(item, "obj_id", (str, int), at)
                object_id = whole_number(str(number))
                if object_id is None:
                    raise at.at("obj_id").fault(number, "an object's id")
                yield _expression(f"ref-youtube-vos:{name}/{key}", video, text, object_id, masks)

    def _by_numbers(
        self,
        name: str,
        frames: list[Any],
        expressions: dict[str, Any],
        place: Place,
        report: Report,
        masks: Any,
        first: int,
    ) -> Iterator[Entry]:
        video = _youtube_frames(self.root / self.split, name, frames, place.at("frames"))
        size = image_size(video.files[0])
        ordered = sorted(expressions) if self.counted == "sa2va" else list(expressions)
        for number, key in enumerate(ordered, start=first):
            with report.faults():
                at = Place(str(self.mask_dict)).at(str(number))
                if not isinstance(masks, dict) or str(number) not in masks:
                    raise at.fault(shown(None), f"masks of expression {key} of video {name}")
                own = check_masks(masks[str(number)], len(video.files), size, at)
                text = field(expressions[key], "exp", str, place.at("expressions", key))
                yield referring(f"ref-youtube-vos:{name}/{key}", video, text, [mask_target(own, video.times_s)])


def youtube_video(base: Path, name: str, frames: list[Any], place: Place) -> tuple[FrameList, dict[int, Frames]]:
    """The frames of those numbers, and the masks of the objects in their maps."""
    video = _youtube_frames(base, name, frames, place)
    maps = [base / "Annotations" / name / f"{image.stem}.png" for image in video.files]
    return video, label_masks(maps, video.files, {VOID})


def _youtube_frames(base: Path, name: str, frames: list[Any], place: Place) -> FrameList:
    if not frames or not all(isinstance(number, str) and whole_number(number) is not None for number in frames):
        raise place.fault(frames, "frame numbers")
    numbers = sorted(frames)
    starts = [round((int(number) - int(numbers[0])) / YOUTUBE_FPS, 6) for number in numbers]
    last = starts[-1] - starts[-2] if len(starts) > 1 else 1 / YOUTUBE_FPS
    images = [base / "JPEGImages" / name / f"{number}.jpg" for number in numbers]
    return FrameList(name, tuple(images), tuple(starts), round(starts[-1] + last, 6))


def _expression(id: str, video: FrameList, text: str, number: int, masks: dict[int, Frames]) -> Entry:
    if number not in masks:
        raise tpo.MediaError(f"{id}: its annotations hold no object {number}; they hold {sorted(masks)}")
    return referring(id, video, text, [mask_target(masks[number], video.times_s)])


@dataclass(kw_only=True)
class MeViS(Masks):
    """MeViS: SPLIT/meta_expressions.json, mask_dict.json and JPEGImages. An expression may mean several objects.

    Layout as its loader and evaluator read it. Split valid is published without masks and is refused.
    """

    split: Split = "train"

    def entries(self, report: Report) -> Iterator[Entry]:
        base = folder(self.root / self.split, "a split of MeViS: meta_expressions.json, mask_dict.json, JPEGImages")
        path = base / "meta_expressions.json"
        root, masks_root = Place(str(path)), Place(str(base / "mask_dict.json"))
        videos = field(read_document(path, "the expressions of MeViS"), "videos", dict, root)
        masks = read_document(base / "mask_dict.json", "the masks of MeViS (split valid is published without them)")
        for name, entry in report.track(list(videos.items())):
            with report.faults():
                yield from self._video(base, name, entry, masks, root.at("videos", name), masks_root, report)

    def _video(
        self,
        base: Path,
        name: str,
        entry: Any,
        masks: dict[str, Any],
        place: Place,
        masks_root: Place,
        report: Report,
    ) -> Iterator[Entry]:
        frames = field(entry, "frames", list, place)
        if not frames or not all(isinstance(name, str) for name in frames) or frames != sorted(frames):
            raise place.at("frames").fault(frames, "frame names, ascending: masks are counted in this order")
        images = [base / "JPEGImages" / name / f"{number}.jpg" for number in frames]
        size, video = image_size(images[0]), FrameList.at_rate(name, images, MEVIS_FPS)
        for key, item in field(entry, "expressions", dict, place).items():
            with report.faults():
                at = place.at("expressions", key)
                text, ids = field(item, "exp", str, at), field(item, "anno_id", list, at)
                missing = [number for number in ids if str(number) not in masks]
                if missing or not ids:
                    raise at.at("anno_id").fault(ids, f"ids of masks in mask_dict.json, which lacks {missing}")
                own = [check_masks(masks[str(n)], len(images), size, masks_root.at(str(n))) for n in ids]
                targets = [mask_target(frames, video.times_s) for frames in own]
                yield referring(f"mevis:{name}/{key}", video, text, targets)
