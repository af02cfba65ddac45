"""What formats of moments share: a query about one video with its spans in seconds, and the record that it becomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import tpo_plugin as tpo
from tpo_head_temporal.media_files import VideoFolder
from tpo_plugin.checks import is_number
from tpo_plugin.convert import MISSING, Entry, Format, Place, Report, worded

SLACK_S = 5.0
"""An end that is behind the video's end by at most this is cut to it: DiDeMo counts in segments, of which the last is
seldom full, and annotators' players round."""

Span = tuple[float, float]

QUESTIONS = (
    'When does this happen in the video: "{query}"?',
    'Find the moment of the video that fits "{query}", with its start and end.',
    'In which part of the video does one see this: "{query}"?',
    'Give the seconds at which "{query}" begins and ends.',
    'Which segment of the video shows this: "{query}"?',
)
ANSWERS = ("It happens at <temporal>.", "That is at <temporal>.", "This part shows it: <temporal>.")


@dataclass(frozen=True)
class Moment:
    """A query about a video, and when what it describes is to be seen."""

    id: str
    video: str
    """The video's name in the data set, with or without suffix."""
    query: str
    spans_s: tuple[Span, ...] | None
    """None: the source keeps them to itself, and the query becomes a prompt."""
    place: Place
    duration_s: float | None = None
    """Length of the video, where the data set states it; else it is read from the video."""
    saliency: tuple[float, ...] | None = None
    """For each clip of `clip_s` seconds the sum of three annotators' scores, 0 to 12."""
    clip_s: float | None = None


@dataclass(kw_only=True)
class Moments(Format):
    """A layout of moments in videos."""

    heads = ("temporal",)

    source: Annotated[Path, typer.Argument(help="The annotations.")]
    videos: Annotated[Path, typer.Option(help="Folder of the videos.")]

    def moments(self, report: Report) -> Iterator[Moment]:
        """The queries of the source; what is wrong with one is raised within `report.faults()`."""
        raise NotImplementedError(f"{type(self).__name__} must define moments")

    def entries(self, report: Report) -> Iterator[Entry]:
        folder = VideoFolder(self.videos)
        moments = list(self.moments(report))
        paths = {video: folder.find(video) for video in dict.fromkeys(moment.video for moment in moments)}
        unknown = dict.fromkeys(paths[m.video] for m in moments if m.duration_s is None and m.spans_s is not None)
        lengths_s = _durations([path for path in unknown if path is not None], report)
        for moment in report.track(moments):
            with report.faults():
                path = paths[moment.video]
                if path is None:
                    raise moment.place.fault(moment.video, f"the name of a video in {self.videos}")
                yield self._entry(moment, path, lengths_s, report)

    def _entry(
        self, moment: Moment, path: Path, lengths_s: dict[Path, float | tpo.MediaError], report: Report
    ) -> Entry:
        question = worded(QUESTIONS, moment.id, query=moment.query.rstrip("."))
        if moment.spans_s is None:
            return Entry(moment.id, [question], videos=[path])
        length = moment.duration_s if moment.duration_s is not None else lengths_s[path]
        if isinstance(length, tpo.MediaError):
            raise length
        spans = [fitted(span, length, moment, report) for span in moment.spans_s]
        task: dict[str, Any] = {"head": "temporal", "spans": spans, "query": moment.query, "duration": length}
        if moment.saliency is not None:
            task |= {"saliency": list(moment.saliency), "clip_s": moment.clip_s}
        return Entry(moment.id, [question, worded(ANSWERS, moment.id)], [task], videos=[path])


def fitted(span: Span, duration_s: float, moment: Moment, report: Report) -> list[float]:
    """The span, its end cut to that of the video. Raises `Fault` where it does not fit."""
    start, end = span
    if start >= duration_s or end > duration_s + SLACK_S:
        raise moment.place.fault(list(span), f"a span within {moment.video}, which lasts {duration_s:.2f} s")
    if end > duration_s:
        report.change("spans that ended behind their video were cut to its end", f"{moment.place}: {list(span)}")
    return [start, min(end, duration_s)]


def _durations(paths: Sequence[Path], report: Report) -> dict[Path, float | tpo.MediaError]:
    """Seconds of each video, or why it cannot be read."""

    def measure(path: Path) -> float | tpo.MediaError:
        try:
            return tpo.read_video(path, tpo.VideoOptions(num_frames=1)).duration_s
        except tpo.MediaError as error:
            return error

    with ThreadPoolExecutor() as pool:
        return dict(zip(paths, report.track(pool.map(measure, paths), len(paths)), strict=True))


# -- values of a source; each raises `Fault` ---------------------------------------------------------------------------


def text_of(value: Any, place: Place) -> str:
    if not isinstance(value, str) or not value.strip():
        raise place.fault(given(value), "text")
    return value.strip()


LONGEST_S = 10_000_000
"""No video lasts longer: a table of its clips takes memory."""


def number_of(value: Any, place: Place, what: str = f"a number of seconds above 0, at most {LONGEST_S}") -> float:
    if not is_number(value) or not 0 < value <= LONGEST_S:
        raise place.fault(given(value), what)
    return float(value)


def object_of(value: Any, place: Place, what: str = "an object") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise place.fault(given(value), what)
    return value


def list_of(value: Any, place: Place, what: str = "a list") -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise place.fault(given(value), what)
    return list(value)


def span_of(value: Any, place: Place, unit_s: float = 1.0) -> Span:
    """[start, end] in seconds, or in units of `unit_s`."""
    if not (isinstance(value, (list, tuple)) and len(value) == 2 and all(is_number(time) for time in value)):
        raise place.fault(given(value), "[start, end], two finite numbers")
    if any(abs(time) > LONGEST_S for time in value):
        raise place.fault(list(value), f"[start, end] of at most {LONGEST_S}")
    start, end = (float(time) * unit_s for time in value)
    if start < 0 or end <= start:
        raise place.fault(list(value), "[start, end] with 0 <= start < end")
    return start, end


def spans_of(value: Any, place: Place) -> tuple[Span, ...]:
    spans = tuple(span_of(span, place.at(k)) for k, span in enumerate(list_of(value, place)))
    if not spans:
        raise place.fault(value, "at least one span [start, end]")
    return spans


def given(value: Any) -> Any:
    return MISSING if value is None else value
