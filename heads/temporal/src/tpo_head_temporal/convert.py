"""From a data set's annotations and its videos to records."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track

import tpo_plugin as tpo
from tpo_head_temporal.formats import Moment, read_moments
from tpo_head_temporal.media_files import VideoFolder
from tpo_plugin.files import replace_file


@dataclass
class ConvertReport:
    """What was written, and what was not."""

    output: Path
    written: int = 0
    cut: int = 0
    """Spans that ended behind their video and were cut to its end."""
    skipped: list[str] = field(default_factory=list)
    """Why queries were left out."""

    def __str__(self) -> str:
        lines = [f"{self.output}: {self.written} records written, {len(self.skipped)} queries skipped"]
        if self.cut:
            lines.append(f"  spans that ended behind their video and were cut to its end: {self.cut}")
        return "\n".join(lines + [f"  skipped {reason}" for reason in self.skipped])


def convert(name: str, file: Path, videos: Path, output: Path) -> ConvertReport:
    """Writes the records of `file` in the format `name`; paths of videos are relative to the written file.

    Where the annotations do not state a video's length, it is read from the video. Raises `RecordError` where the file
    is not in that format at all, and `TPOError` where nothing is left to write.
    """
    report, folder = ConvertReport(output), VideoFolder(videos)
    moments = read_moments(name, file, lambda error: report.skipped.append(str(error)))
    paths = {video: folder.find(video) for video in dict.fromkeys(moment.video for moment in moments)}
    unknown = dict.fromkeys(m.video for m in moments if m.duration_s is None and paths[m.video] is not None)
    lengths = _durations({video: path for video in unknown if (path := paths[video]) is not None})
    records = []
    for moment in moments:
        path = paths[moment.video]
        if path is None:
            report.skipped.append(f"{_place(moment)}: video {moment.video!r} is not in {videos}")
            continue
        length = moment.duration_s if moment.duration_s is not None else lengths[moment.video]
        if isinstance(length, tpo.MediaError):
            report.skipped.append(f"{_place(moment)}: {length}")
            continue
        try:
            fitted = moment.fitted(length)
        except tpo.RecordError as error:
            report.skipped.append(str(error))
            continue
        report.cut += fitted.num_cut
        records.append(json.dumps(fitted.to_record(_relative(path, output.parent)), ensure_ascii=False))
    if not records:
        raise tpo.TPOError(f"{file}: no query can be used\n{report}")
    output.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(records) + "\n"
    replace_file(output, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
    report.written = len(records)
    return report


def _durations(paths: dict[str, Path]) -> dict[str, float | tpo.MediaError]:
    """Seconds of each video, or why it cannot be read."""

    def measure(path: Path) -> float | tpo.MediaError:
        try:
            return tpo.read_video(path, tpo.VideoOptions(num_frames=1)).duration_s
        except tpo.MediaError as error:
            return error

    with ThreadPoolExecutor() as pool:
        found = pool.map(measure, paths.values())
        shown = track(found, "lengths of videos", total=len(paths), console=Console(stderr=True), disable=not paths)
        return dict(zip(paths, shown, strict=True))


def _place(moment: Moment) -> str:
    return ":".join(str(part) for part in (moment.file, moment.line, moment.id) if part is not None)


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on another drive
        return str(path.absolute())
