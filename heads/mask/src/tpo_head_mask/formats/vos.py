"""Masks over video: DAVIS, Ref-DAVIS, Ref-YouTube-VOS, MeViS and SA-V, laid out as they are published."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import tpo_plugin as tpo
from tpo_head_mask import rle
from tpo_head_mask.formats.common import (
    FrameList,
    Sample,
    Skipped,
    field,
    files,
    folder,
    guarded,
    image_size,
    label_masks,
    mask_target,
    read_json,
    read_text,
    referring,
    tracking,
)

DAVIS_FPS = 24.0
YOUTUBE_FPS = 30.0
"""Of the videos that YouTube-VOS's frame numbers count."""
MEVIS_FPS = 6.0
"""Nominal: its videos come from several sets, and their rates are not published."""
SAV_FPS, SAV_EVERY = 24.0, 4
"""Of the videos; every fourth frame is annotated."""

_DAVIS_EXPRESSION = re.compile(r'(\S+)\s+(\d+)\s+"?(.*?)"?\s*')


def davis(root: Path, split: str | None) -> Iterator[Sample]:
    """DAVIS 2017: every object is to be tracked from the box of its first frame."""
    for name in _davis_sequences(root, split or "train"):
        yield from guarded(name, partial(_davis_objects, root, name))


def _davis_objects(root: Path, name: str) -> Iterator[Sample]:
    video, masks = _davis_sequence(root, name)
    for number, frames in sorted(masks.items()):
        yield tracking(f"{name}/{number}", video, mask_target(frames, video.times_s))


def ref_davis(root: Path, split: str | None) -> Iterator[Sample]:
    """Ref-DAVIS 2017: DAVIS with davis_text_annotations/*.txt, lines `sequence object "expression"`."""
    wanted = set(_davis_sequences(root, split or "train"))
    texts = folder(root / "davis_text_annotations", "the expressions of Ref-DAVIS, *.txt")
    expressions: dict[str, list[tuple[str, int, str]]] = {}
    for file in files(texts, ".txt"):
        for number, line in enumerate(read_text(file, "expressions").splitlines(), start=1):
            match = _DAVIS_EXPRESSION.fullmatch(line.strip().lstrip("\ufeff"))
            if line.strip() and match is None:
                raise tpo.RecordError(f'is {line!r:.80}; expected: sequence object "text"', file=str(file), line=number)
            if match is not None and match[1] in wanted:
                expressions.setdefault(match[1], []).append((f"{file.stem}/{number}", int(match[2]), match[3]))
    if not expressions:
        raise tpo.TPOError(f"{texts}: holds no expression for a sequence of split {split or 'train'!r}")
    for name, items in sorted(expressions.items()):
        yield from guarded(name, partial(_ref_davis_sequence, root, name, items))


def _ref_davis_sequence(root: Path, name: str, items: list[tuple[str, int, str]]) -> Iterator[Sample]:
    video, masks = _davis_sequence(root, name)
    for place, number, text in items:
        yield _expression(f"{name}/{number}/{place}", video, text, number, masks)


def _davis_sequences(root: Path, split: str) -> list[str]:
    lists = folder(root / "ImageSets" / "2017", "DAVIS 2017: ImageSets/2017, JPEGImages/480p, Annotations/480p")
    path = lists / f"{split}.txt"
    if not path.is_file():
        raise tpo.TPOError(f"{path}: no such file; splits are {[file.stem for file in files(lists, '.txt')]}")
    return read_text(path, "names of sequences").split()


def _davis_sequence(root: Path, name: str) -> tuple[FrameList, dict[int, list[rle.RLE | None]]]:
    images = _images(root / "JPEGImages" / "480p" / name)
    video = FrameList.at_rate(name, images, DAVIS_FPS)
    return video, label_masks([root / "Annotations" / "480p" / name / f"{image.stem}.png" for image in images], images)


def ref_youtube_vos(root: Path, split: str | None) -> Iterator[Sample]:
    """Ref-YouTube-VOS: meta_expressions/<split>/meta_expressions.json, <split>/JPEGImages, <split>/Annotations."""
    split = split or "train"
    path = root / "meta_expressions" / split / "meta_expressions.json"
    videos = field(read_json(path, "the expressions of Ref-YouTube-VOS"), "videos", dict, path)
    folder(root / split / "Annotations", "maps of object ids (the other splits are published without them)")
    for name, entry in videos.items():
        expressions = field(entry, "expressions", dict, path, f"videos.{name}")
        frames = field(entry, "frames", list, path, f"videos.{name}")
        yield from guarded(name, partial(_youtube_video, root / split, name, frames, expressions, path))


def _youtube_video(
    root: Path, name: str, frames: list[str], expressions: dict[str, Any], path: Path
) -> Iterator[Sample]:
    numbers = sorted(frames)
    if not numbers or not all(isinstance(number, str) and number.isdigit() for number in numbers):
        raise tpo.RecordError(
            f"is {frames!r:.60}; expected frame numbers", file=str(path), field=f"videos.{name}.frames"
        )
    starts = [round((int(number) - int(numbers[0])) / YOUTUBE_FPS, 6) for number in numbers]
    last = starts[-1] - starts[-2] if len(starts) > 1 else 1 / YOUTUBE_FPS
    images = [root / "JPEGImages" / name / f"{number}.jpg" for number in numbers]
    video = FrameList(name, tuple(images), tuple(starts), round(starts[-1] + last, 6))
    masks = label_masks([root / "Annotations" / name / f"{number}.png" for number in numbers], images)
    for key, item in expressions.items():
        where = f"videos.{name}.expressions.{key}"
        text, number = field(item, "exp", str, path, where), field(item, "obj_id", (str, int), path, where)
        if not str(number).isdigit():
            raise tpo.RecordError(f"is {number!r}; expected an object's id", file=str(path), field=f"{where}.obj_id")
        yield _expression(f"{name}/{key}", video, text, int(number), masks)


def _expression(id: str, video: FrameList, text: str, number: int, masks: dict[int, list[rle.RLE | None]]) -> Sample:
    if number not in masks:
        return Skipped(id, f"its annotations hold no object {number}; they hold {sorted(masks)}")
    return referring(id, video, text, [mask_target(masks[number], video.times_s)])


def mevis(root: Path, split: str | None) -> Iterator[Sample]:
    """MeViS: <split>/meta_expressions.json, mask_dict.json and JPEGImages. An expression may mean several objects."""
    base = folder(root / (split or "train"), "a split of MeViS: meta_expressions.json, mask_dict.json, JPEGImages")
    path, mask_path = base / "meta_expressions.json", base / "mask_dict.json"
    videos = field(read_json(path, "the expressions of MeViS"), "videos", dict, path)
    masks = read_json(mask_path, "the masks of MeViS (split valid is published without them)")
    for name, entry in videos.items():
        yield from guarded(name, partial(_mevis_video, base, name, entry, masks, path, mask_path))


def _mevis_video(
    base: Path, name: str, entry: Any, masks: dict[str, Any], path: Path, mask_path: Path
) -> Iterator[Sample]:
    images = [base / "JPEGImages" / name / f"{n}.jpg" for n in field(entry, "frames", list, path, f"videos.{name}")]
    if not images:
        raise tpo.RecordError("is empty; expected frame names", file=str(path), field=f"videos.{name}.frames")
    size = image_size(images[0])
    video = FrameList.at_rate(name, images, MEVIS_FPS)
    for key, item in field(entry, "expressions", dict, path, f"videos.{name}").items():
        where = f"videos.{name}.expressions.{key}"
        text, ids = field(item, "exp", str, path, where), field(item, "anno_id", list, path, where)
        missing = [number for number in ids if str(number) not in masks]
        if missing or not ids:
            yield Skipped(f"{name}/{key}", f"{mask_path} holds no masks {missing or '(no anno_id is given)'}")
            continue
        for number in ids:
            _check_masks(masks[str(number)], len(images), size, mask_path, str(number))
        targets = [mask_target(masks[str(number)], video.times_s) for number in ids]
        yield referring(f"{name}/{key}", video, text, targets)


def _check_masks(frames: Any, num: int, size: tuple[int, int], path: Path, where: str) -> None:
    """Raises `RecordError` for what is no list of RLE, `MediaError` for another number of frames, or another size."""
    if not isinstance(frames, list):
        raise tpo.RecordError(f"is {type(frames).__name__}; expected a list of RLE", file=str(path), field=where)
    if len(frames) != num:
        raise tpo.MediaError(f"{path}: {where} has masks for {len(frames)} frames, the video has {num}")
    for index, mask in enumerate(frames):
        if mask is None:
            continue
        try:
            rle.check(mask)
        except ValueError as error:
            raise tpo.RecordError(str(error), file=str(path), field=f"{where}[{index}]") from error
        if tuple(mask["size"]) != size:
            raise tpo.MediaError(f"{path}: {where}[{index}] is of size {mask['size']}, its frame of {list(size)}")


def sa_v(root: Path, split: str | None) -> Iterator[Sample]:
    """SA-V: of the training set videos with <video>_manual.json and _auto.json beside them, in any subfolder; of the
    others JPEGImages_24fps and Annotations_6fps. Every object is to be tracked from the box of its first frame."""
    if split is not None:
        raise tpo.TPOError(f"split {split!r} was given; SA-V has a folder for each, so give that as the root")
    if (root / "Annotations_6fps").is_dir():
        for video in sorted(path for path in (root / "Annotations_6fps").iterdir() if path.is_dir()):
            yield from guarded(video.name, partial(_sav_folders, root / "JPEGImages_24fps" / video.name, video))
        return
    annotations = sorted([*root.rglob("*_manual.json"), *root.rglob("*_auto.json")])
    if not annotations:
        raise tpo.TPOError(f"{root}: holds neither *_manual.json and *_auto.json, nor Annotations_6fps")
    for path in annotations:
        yield from guarded(path.stem, partial(_sav_json, path))


def _sav_folders(frames: Path, annotations: Path) -> Iterator[Sample]:
    images = _images(frames)
    video = FrameList.at_rate(frames.name, images, SAV_FPS)
    starts = {image.stem: (image, start) for image, start in zip(images, video.times_s, strict=True)}
    for item in sorted(path for path in annotations.iterdir() if path.is_dir()):
        maps = files(item, ".png")
        unknown = [path.name for path in maps if path.stem not in starts]
        if unknown:
            yield Skipped(f"{frames.name}/{item.name}", f"{item}: {unknown[0]} has no frame in {frames}")
            continue
        masks = label_masks(maps, [starts[path.stem][0] for path in maps])
        if len(masks) > 1:
            yield Skipped(f"{frames.name}/{item.name}", f"{item}: holds the values {[0, *sorted(masks)]}, expected two")
            continue
        times_s = [starts[path.stem][1] for path in maps]
        target = mask_target(next(iter(masks.values()), [None] * len(maps)), times_s)
        yield tracking(f"{frames.name}/{item.name}", video, target)


def _sav_json(path: Path) -> Iterator[Sample]:
    data = read_json(path, "the masklets of SA-V")
    name = field(data, "video_id", str, path)
    video = path.with_name(f"{name}.mp4")
    if not video.is_file():
        raise tpo.MediaError(f"{video}: no such file")
    size = tuple(int(field(data, key, (int, float), path)) for key in ("video_height", "video_width"))
    frames, ids = field(data, "masklet", list, path), field(data, "masklet_id", list, path)
    times_s = [round(index * SAV_EVERY / SAV_FPS, 6) for index in range(len(frames))]
    for index, items in enumerate(frames):
        if not isinstance(items, list) or len(items) != len(ids):
            num = len(items) if isinstance(items, list) else repr(items)
            raise tpo.RecordError(f"has {num} masks for {len(ids)} masklets", file=str(path), field=f"masklet[{index}]")
    for column, number in enumerate(ids):
        masks = [items[column] for items in frames]
        _check_masks(masks, len(frames), (size[0], size[1]), path, f"masklet {number}")
        yield tracking(f"{path.stem}/{number}", video, mask_target(masks, times_s))


def _images(path: Path) -> list[Path]:
    found = files(path, ".jpg", ".jpeg", ".png")
    if not found:
        raise tpo.MediaError(f"{path}: holds no frame")
    return found
