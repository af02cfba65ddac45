"""From a format's entries to a file of records."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from tpo_plugin.atomic import replace_file
from tpo_plugin.config import TPOConfig
from tpo_plugin.convert.format import Entry, Format, FrameList, StoredPicture
from tpo_plugin.convert.pictures import picture_type
from tpo_plugin.convert.report import Report
from tpo_plugin.data.format import RecordFormat
from tpo_plugin.data.records import MEDIA_TAG, parse_record
from tpo_plugin.errors import RecordError, TPOError

_COCO_NAME = re.compile(r"(?:COCO_\w+_)?0*(\d+)")
"""COCO names its pictures by their id: `000000000139.jpg`, `COCO_train2014_000000000139.jpg`."""


def convert(
    format: Format,
    output: Path,
    *,
    exclude: Collection[str] = (),
    keep_going: bool = False,
    report: Report | None = None,
) -> Report:
    """Writes the records of a source, checked by their heads, to a JSON Lines file, and says what became of the rest.

    Media inside the records' folder are named relative to it, others by their whole path. Entries that show a picture
    of `exclude` (ids, and names of files without folder and suffix) are left out. Raises `TPOError`, and leaves no
    file, where the source is not laid out as the format says, gives no record, or as a whole contradicts the convention
    that was declared (with `keep_going` the entries that fit are written then).
    """
    report = report or Report()
    names = format.heads
    records = RecordFormat.of_heads(names, TPOConfig(heads=dict(format.settings))) if names else RecordFormat({}, {})
    seen: set[str] = set()
    excluded = set(exclude)

    def write(temporary: str) -> None:
        with open(temporary, "w", encoding="utf-8") as file:
            for entry in format.entries(report):
                if excluded and (shown := sorted(_picture_names(entry) & excluded)):
                    report.leave_out("shows a picture that was to be left out", f"{entry.id}: {shown[0]}")
                    continue
                with report.faults():
                    if entry.id in seen:
                        raise RecordError(f"is {entry.id!r}, as that of another entry", field="id")
                    record = make_record(entry, output)
                    parse_record(record, records, file=entry.id, open_ended=len(entry.turns) % 2 == 1)
                    seen.add(entry.id)
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    report.written += 1
        report.doubts += [doubt for check in report.checks for doubt in check()]
        if report.doubts and not keep_going:
            text = "\n".join(report.doubts)
            raise TPOError(f"{text}\nNothing was written; --keep-going writes the entries that fit.\n{report}")
        if not report.written:
            raise TPOError(f"the source gives no record\n{report}")

    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, write)
    return report


def read_excluded(path: Path) -> set[str]:
    """The pictures that a file lists: an id or a name a line, or records, whose pictures are meant."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TPOError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return {name for line in lines if line.strip() for name in _excluded(line.strip())}


def _excluded(line: str) -> Iterator[str]:
    """The names in a line of such a file."""
    if not line.startswith("{"):
        yield from _file_names(line)
        return
    try:
        images = json.loads(line).get("image") or []
    except ValueError as error:
        raise TPOError(f"{line!r:.80} is neither a picture's id or name, nor a record: {error}") from error
    for image in [images] if isinstance(images, str) else images:
        yield from _file_names(image)


def _picture_names(entry: Entry) -> set[str]:
    files = [image.as_posix() if isinstance(image, Path) else image.name for image in entry.images]
    names = {name for file in files for name in _file_names(file)}
    return names | {str(name) for name in entry.picture_ids}


def _file_names(path: str) -> Iterator[str]:
    stem = path.rpartition("/")[2].partition(".")[0]
    yield stem
    if match := _COCO_NAME.fullmatch(stem):
        yield match[1]


def make_record(entry: Entry, output: Path) -> dict[str, Any]:
    """The record of an entry, in a file `output`."""
    base = output.parent
    media = {
        "image": [_reference(_file_of(medium, output), base) for medium in entry.images],
        "video": [_reference(_file_of(medium, output), base) for medium in entry.videos],
    }
    turns = list(entry.turns)
    if not any(MEDIA_TAG.search(turn) for turn in turns):
        turns[0] = "".join(f"<{kind}>\n" for kind, paths in media.items() for _ in paths) + turns[0]
    conversations = [{"from": ("human", "gpt")[index % 2], "value": turn} for index, turn in enumerate(turns)]
    if entry.system is not None:
        conversations.insert(0, {"from": "system", "value": entry.system})
    record: dict[str, Any] = {"id": entry.id}
    record |= {kind: paths[0] if len(paths) == 1 else paths for kind, paths in media.items() if paths}
    return record | {"conversations": conversations} | ({"tasks": list(entry.tasks)} if entry.tasks else {})


def _file_of(medium: Path | FrameList | StoredPicture, output: Path) -> Path:
    """The file of a medium, written where it is none yet: in a folder beside the records."""
    if isinstance(medium, FrameList):
        lists = output.parent / f"{output.stem}_videos"
        return _written(lists / f"{_file_name(medium.name)}.ffconcat", _frame_list(medium, lists).encode())
    if isinstance(medium, StoredPicture):
        suffix = picture_type(medium.data, medium.name)
        return _written(output.parent / f"{output.stem}_pictures" / f"{_file_name(medium.name)}.{suffix}", medium.data)
    return medium


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)


def _written(path: Path, data: bytes) -> Path:
    if not path.exists() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return path


def _frame_list(video: FrameList, lists: Path) -> str:
    lines = ["ffconcat version 1.0"]
    ends_s = [*video.times_s[1:], video.end_s]
    for file, start, end in zip(video.files, video.times_s, ends_s, strict=True):
        quoted = _reference(file, lists).replace("'", "'\\''")
        lines += [f"file '{quoted}'", f"duration {end - start:.6f}"]
    return "\n".join(lines) + "\n"


def _reference(path: Path, base: Path) -> str:
    """How a file in `base` names `path`: relative where it lies beside or below, whole otherwise."""
    whole, start = os.path.abspath(path), os.path.abspath(base)
    return (os.path.relpath(whole, start) if whole.startswith(start + os.sep) else whole).replace(os.sep, "/")
