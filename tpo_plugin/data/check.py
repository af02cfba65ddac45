"""Checking all records of files, in parallel: what they hold, and what is wrong with them. No torch in here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpo_plugin.data.format import RecordFormat
from tpo_plugin.data.opening import RecordSource, open_source
from tpo_plugin.data.records import Record, check_sample, read_record
from tpo_plugin.data.storage import local_path, media_folder
from tpo_plugin.errors import MediaError, RecordError
from tpo_plugin.processes import end_with_parent

if TYPE_CHECKING:
    from tpo_plugin.data.media import ImageOptions, VideoOptions

_BLOCK, _MEDIA_BLOCK = 2000, 16
"""Records that a process checks in one go."""

_FEW, _SUSPICIOUS = 20, 0.05
"""Boxes from which on their kinds are judged, and the share of them that is worth a word."""

_FIRST_INDEX, _INDEX = re.compile(r"^\[\d+\]\.?"), re.compile(r"\[\d+\]")
_VALUE = re.compile(r"'[^']*'|\[[^\]]*\]|-?\b\d[\w.+-]*|\bnan\b")


@dataclass
class HeadCount:
    """What the good records hold of one head."""

    records: int = 0
    tasks: int = 0
    tokens: int = 0
    """Task tokens in answers and input tokens in questions."""


@dataclass
class FileCount:
    """What a file holds."""

    records: int = 0
    wrong: int = 0
    without_media: int = 0
    """Good records of which a picture or video is not there."""
    missing: str | None = None
    """The first medium that is not there."""


@dataclass
class BoxCount:
    """Boxes of one head, and how many of them few pictures have."""

    boxes: int = 0
    thin: int = 0
    """With a side of less than 1/500 of the picture's."""
    tiny: int = 0
    """Others that cover less than 1/10,000 of the picture."""
    whole: int = 0
    """That cover more than 98 percent of it."""

    def add(self, box: Sequence[float]) -> None:
        """Counts a box [x1, y1, x2, y2], 0 to 1."""
        width, height = box[2] - box[0], box[3] - box[1]
        self.boxes += 1
        if min(width, height) < 1 / 500:
            self.thin += 1
        elif width * height < 1e-4:
            self.tiny += 1
        self.whole += width * height > 0.98

    def warnings(self, head: str) -> Iterator[str]:
        """What may be wrong, where it is so for more than one box in twenty, of at least twenty."""
        meant = {"thin": "are nearly without width or height", "tiny": "cover less than 1/10,000 of their picture"}
        meant["whole"] = "cover the whole picture"
        for name, what in meant.items():
            count = getattr(self, name)
            if self.boxes >= _FEW and count > _SUSPICIOUS * self.boxes:
                yield (
                    f"{head}: {count} of {self.boxes} boxes ({count / self.boxes:.0%}) {what}; is that meant? look at "
                    "them with --pictures"
                )


@dataclass
class ErrorKind:
    """Errors that differ in their place and values only."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    """The first of them, with their places."""


@dataclass
class CheckReport:
    """What was found; of wrong records only the first error."""

    limit: int
    """Places that are kept of each kind of error; files that cannot be opened are all kept."""
    records: int = 0
    """All, the wrong ones included."""
    without_tasks: int = 0
    heads: dict[str, HeadCount] = field(default_factory=dict)
    files: dict[str, FileCount] = field(default_factory=dict)
    """By name, those that can be opened."""
    boxes: dict[str, BoxCount] = field(default_factory=dict)
    """Of the heads that name boxes."""
    errors: dict[str, ErrorKind] = field(default_factory=dict)

    def add_record(self, record: Record, format: RecordFormat) -> None:
        """Counts a good record."""
        tasks = [task for turn in record.turns for task in turn.tasks]
        self.without_tasks += not tasks
        for name in dict.fromkeys(task["head"] for task in tasks):
            found = self.heads.setdefault(name, HeadCount())
            own = [task for task in tasks if task["head"] == name]
            found.records += 1
            found.tasks += len(own)
            found.tokens += sum(format.codecs[name].num_tokens(task) for task in own)
            for box in (box for task in own for box in format.codecs[name].boxes_of(task)):
                self.boxes.setdefault(name, BoxCount()).add(box)

    def add_error(self, kind: str, message: str) -> None:
        """Counts an error."""
        found = self.errors.setdefault(kind, ErrorKind())
        found.count += 1
        if len(found.first) < self.limit:
            found.first.append(message)

    def warnings(self) -> list[str]:
        """What is right by the format, and may yet be wrong."""
        return [warning for name, count in self.boxes.items() for warning in count.warnings(name)]

    def merge(self, other: CheckReport) -> None:
        """Adds what was found behind it."""
        self.records += other.records
        self.without_tasks += other.without_tasks
        for name, count in other.heads.items():
            found = self.heads.setdefault(name, HeadCount())
            found.records += count.records
            found.tasks += count.tasks
            found.tokens += count.tokens
        for name, own in other.files.items():
            of_file = self.files.setdefault(name, FileCount())
            of_file.records += own.records
            of_file.wrong += own.wrong
            of_file.without_media += own.without_media
            of_file.missing = of_file.missing or own.missing
        for name, boxes in other.boxes.items():
            known_boxes = self.boxes.setdefault(name, BoxCount())
            for part in fields(BoxCount):
                setattr(known_boxes, part.name, getattr(known_boxes, part.name) + getattr(boxes, part.name))
        for kind, errors in other.errors.items():
            known = self.errors.setdefault(kind, ErrorKind())
            known.count += errors.count
            known.first += errors.first[: self.limit - len(known.first)]


@dataclass
class _Work:
    """All that a process needs."""

    format: RecordFormat
    files: list[tuple[str, RecordSource, Path]]
    """Each with its name and its media folder."""
    limit: int
    video: VideoOptions | None
    """How videos are read, where media are opened."""
    image: ImageOptions | None
    open_ended: bool
    """Whether a record may end with a question."""
    confine: bool
    """Whether a record's files must lie in its media folder."""

    def check(self, block: tuple[int, int, int]) -> CheckReport:
        """The records from `start` to `stop` of a file."""
        number, start, stop = block
        name, data, media_root = self.files[number]
        report = CheckReport(self.limit, records=stop - start)
        count = report.files[name] = FileCount(records=stop - start)
        for index in range(start, stop):
            line, prefix = data.place(index)
            place = f"{data.file_of(index)}:{line}" if line is not None else f"{data.file_of(index)}: {prefix}"
            try:
                record = read_record(
                    data, index, self.format, media_root, name, open_ended=self.open_ended, confine=self.confine
                )
                files = (medium for medium in (*record.images, *record.videos) if isinstance(medium, Path))
                missing = next((path for path in files if not path.exists()), None)
                if missing is not None:
                    count.without_media += 1
                    count.missing = count.missing or str(missing)
                if self.video is not None:
                    self._open(record)
                report.add_record(record, self.format)
                continue
            except RecordError as error:
                report.add_error(kind_of(error), str(error))
            except MediaError as error:
                report.add_error(kind_of(error), f"{place}: {error}")
            except Exception as error:  # a codec that fails on what it did not expect
                message = f"{type(error).__name__}: {error}"
                report.add_error(_general(message), f"{place}: {message}")
            count.wrong += 1
        return report

    def _open(self, record: Record) -> None:
        from tpo_plugin.data.dataset import read_sample

        check_sample(self.format, read_sample(record, self.video, self.image))


def check_files(
    files: Sequence[tuple[str | Path, str | Path | None]],
    format: RecordFormat,
    *,
    video: VideoOptions | None = None,
    image: ImageOptions | None = None,
    open_ended: bool = False,
    confine: bool = False,
    workers: int = 1,
    limit: int = 5,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> CheckReport:
    """Checks every record of files, each with its media folder (None: the file's own).

    With `video`, media are opened too, videos and pictures so, and each head checks its samples. `open_ended` allows
    records that end with a question: prompts. `confine` is that of `Records`. `progress` gets how many records are
    done, of how many. What is wrong is in the report, with `limit` places of each kind of error; a file that cannot be
    opened is such an error.
    """
    report = CheckReport(limit)
    work = _Work(format, [], limit, video, image, open_ended, confine)
    for path, media_root in files:
        try:
            data = open_source(path)
            if not len(data):
                raise RecordError("holds no record", file=str(path))
        except RecordError as error:
            unopened = report.errors.setdefault("file", ErrorKind())
            unopened.count += 1
            unopened.first.append(str(error))  # each, whatever the limit: nothing is trained without it
            continue
        folder = local_path(media_root) if media_root is not None else media_folder(path)
        work.files.append((str(path), data, folder))
    size = _BLOCK if video is None else _MEDIA_BLOCK
    blocks = [
        (number, start, min(start + size, len(data)))
        for number, (_, data, _) in enumerate(work.files)
        for start in range(0, len(data), size)
    ]
    total = sum(len(data) for _, data, _ in work.files)
    progress(0, total)
    for part in _run(work, blocks, min(workers, len(blocks))):
        report.merge(part)
        progress(report.records, total)
    return report


def _run(work: _Work, blocks: list[tuple[int, int, int]], workers: int) -> Iterator[CheckReport]:
    if workers < 2:
        yield from map(work.check, blocks)
        return
    # Processes that start anew: a fork of one with threads, as torch has, may hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (work,)) as pool:
        yield from pool.map(_check, blocks)


_work: _Work
"""The work of this process, in the pool."""


def _start(work: _Work) -> None:
    global _work
    _work = work
    end_with_parent()


def _check(block: tuple[int, int, int]) -> CheckReport:
    return _work.check(block)


def kind_of(error: RecordError | MediaError) -> str:
    """What it has in common with errors at other places and of other values: its field and its message."""
    if isinstance(error, MediaError):
        return f"media: {_general(str(error).partition(': ')[2])}"
    place = ":".join(str(part) for part in (error.file, error.line) if part is not None)
    field = error.field or ""
    message = str(error).removeprefix(f"{place}: ").removeprefix(f"{field}: ")
    field = _INDEX.sub("[]", _FIRST_INDEX.sub("", field))
    return ": ".join(part for part in (field, _general(message)) if part)


def _general(message: str) -> str:
    """A message without the values in it."""
    return _VALUE.sub("…", message)
