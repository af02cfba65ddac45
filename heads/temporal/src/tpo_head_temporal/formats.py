"""Readers of moment retrieval data sets: Charades-STA, QVHighlights, ActivityNet Captions, DiDeMo. No torch in here.

Each reader gives `Moment`s: one query about one video with its spans in seconds. What breaks a format is a
`RecordError` that names file, line (in a JSON document: the field's path) and field; readers raise the first one, or
hand each to `on_error` and go on with the next query.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import tpo_plugin as tpo
from tpo_head_temporal.jsonlines import parse_json, read_text
from tpo_head_temporal.span_metrics import span_iou
from tpo_plugin.checks import is_number

QV_CLIP_S = 2.0
DIDEMO_SEGMENT_S = 5.0
LONGEST_S = 10_000_000
"""No video lasts longer: a table of its clips takes memory."""
SLACK_S = 5.0
"""An end that is behind the video's end by at most this is cut to it: DiDeMo counts in segments, of which the last is
seldom full, and annotators' players round."""


@dataclass(frozen=True)
class Moment:
    """A query about a video, and when what it describes is to be seen."""

    id: str
    video: str
    """The video's name in the data set, with or without suffix."""
    query: str
    spans_s: tuple[tuple[float, float], ...]
    duration_s: float | None = None
    """Length of the video, where the data set states it."""
    saliency: tuple[float, ...] | None = None
    """QVHighlights: for each clip of 2 seconds the sum of three annotators' scores, 0 to 12."""
    num_cut: int = 0
    """Spans that were cut to the video's end."""
    file: str = ""
    line: int | None = None
    """Where it comes from, for messages."""

    def fitted(self, duration_s: float) -> Moment:
        """The same in a video of that length: ends are cut to it. Raises `RecordError` where a span does not fit."""
        spans = []
        for k, (start, end) in enumerate(self.spans_s):
            if start >= duration_s or end > duration_s + SLACK_S:
                raise tpo.RecordError(
                    f"is [{start:g}, {end:g}], but {self.video} lasts {duration_s:.2f} s",
                    file=self.file,
                    line=self.line,
                    field=f"{self.id}: span {k}",
                )
            spans.append((start, min(end, duration_s)))
        num_cut = self.num_cut + sum(end > duration_s for _, end in self.spans_s)
        return replace(self, spans_s=tuple(spans), duration_s=duration_s, num_cut=num_cut)

    def to_record(self, video: str) -> dict[str, Any]:
        """A record of one question with a temporal task; `video` is the path that it shall hold."""
        task: dict[str, Any] = {"head": "temporal", "spans": [list(span) for span in self.spans_s], "query": self.query}
        if self.duration_s is not None:
            task["duration"] = self.duration_s
        if self.saliency is not None:
            task |= {"saliency": list(self.saliency), "clip_s": QV_CLIP_S}
        question = f'<video>\nWhen does this happen in the video: "{self.query.rstrip(".")}"?'
        return {
            "id": self.id,
            "video": video,
            "conversations": [
                {"from": "human", "value": question},
                {"from": "gpt", "value": "It happens at <temporal>."},
            ],
            "tasks": [task],
        }


def read_moments(
    name: str, path: str | Path, on_error: Callable[[tpo.RecordError], None] | None = None
) -> list[Moment]:
    """All queries of a file in the format `name`, a key of `FORMATS`. Raises `RecordError`."""
    if name not in FORMATS:
        raise tpo.TPOError(f"format is {name!r}; expected one of {', '.join(map(repr, FORMATS))}")
    moments: dict[str, Moment] = {}
    for found in FORMATS[name](path):
        if isinstance(found, Moment) and found.id in moments:
            found = tpo.RecordError(f"id is {found.id!r}, as that of another query", file=str(path), line=found.line)
        if isinstance(found, Moment):
            moments[found.id] = found
        elif on_error is not None:
            on_error(found)
        else:
            raise found
    if not moments and on_error is None:
        raise tpo.RecordError("holds no query", file=str(path))
    return list(moments.values())


# -- the formats: each gives moments, and errors where one should be ---------------------------------------------------

_Found = Iterator["Moment | tpo.RecordError"]


def _tried(make: Callable[..., Moment], *args: Any) -> Moment | tpo.RecordError:
    try:
        return make(*args)
    except tpo.RecordError as error:
        return error


def _lines(path: str | Path) -> Iterator[tuple[_Check, str]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield _Check(str(path), number), line


def _charades_sta(path: str | Path) -> _Found:
    """Lines `VIDEO START END##SENTENCE`."""
    counts: Counter[str] = Counter()
    for check, line in _lines(path):
        found = _tried(_charades_line, check, line)
        if isinstance(found, Moment):
            counts[found.video] += 1
            found = replace(found, id=f"{found.video}_{counts[found.video]}")
        yield found


def _charades_line(check: _Check, line: str) -> Moment:
    head, marks, sentence = line.partition("##")
    words = head.split()
    if not marks or len(words) != 3:
        raise check.wrong("", f"is {line.strip()[:80]!r}, expected 'VIDEO START END##SENTENCE'")
    times = [check.seconds(field, word) for field, word in zip(("start", "end"), words[1:], strict=True)]
    span = check.span("start, end", times)
    return Moment("", words[0], check.text("sentence", sentence), (span,), file=check.file, line=check.number)


def _qvhighlights(path: str | Path) -> _Found:
    """JSON Lines with `qid`, `query`, `vid`, `duration`, `relevant_windows`, and saliency of relevant clips."""
    for check, line in _lines(path):
        yield _tried(_qvhighlights_line, check, line)


def _qvhighlights_line(check: _Check, line: str) -> Moment:
    data = parse_json(line, check.file, check.number)
    if not isinstance(data, dict):
        raise check.wrong("", f"is {_kind(data)}, expected an object")
    qid = data.get("qid")
    if isinstance(qid, bool) or not isinstance(qid, (int, str)):
        raise check.wrong("qid", f"is {_kind(qid)}, expected a number or text")
    duration_s = check.duration("duration", data.get("duration"))
    return Moment(
        str(qid),
        check.text("vid", data.get("vid")),
        check.text("query", data.get("query")),
        check.spans("relevant_windows", data.get("relevant_windows")),
        saliency=_saliency(data, duration_s, check),
        file=check.file,
        line=check.number,
    ).fitted(duration_s)


def _saliency(data: Mapping[str, Any], duration_s: float, check: _Check) -> tuple[float, ...] | None:
    """Summed scores of every clip; None where the line has no `saliency_scores`."""
    if data.get("saliency_scores") is None:
        return None
    ids = check.list("relevant_clip_ids", data.get("relevant_clip_ids"))
    rated = check.list("saliency_scores", data["saliency_scores"])
    if len(ids) != len(rated):
        raise check.wrong(
            "saliency_scores", f"has length {len(rated)}, relevant_clip_ids {len(ids)}; expected the same"
        )
    sums = [0.0] * max(1, int(duration_s / QV_CLIP_S))
    for k, (clip, scores) in enumerate(zip(ids, rated, strict=True)):
        if isinstance(clip, bool) or not isinstance(clip, int) or not 0 <= clip < len(sums):
            raise check.wrong(f"relevant_clip_ids[{k}]", f"is {clip!r}, expected 0 to {len(sums) - 1}")
        if not (isinstance(scores, list) and len(scores) == 3 and all(is_number(x) and 0 <= x <= 4 for x in scores)):
            raise check.wrong(f"saliency_scores[{k}]", f"is {scores!r}, expected three numbers from 0 to 4")
        sums[clip] = float(sum(scores))
    return tuple(sums)


def _activitynet_captions(path: str | Path) -> _Found:
    """A JSON object: video name to `duration`, `timestamps` and `sentences`."""
    data = parse_json(read_text(path), path)
    if not isinstance(data, dict):
        raise tpo.RecordError(f"is {_kind(data)}, expected an object of videos", file=str(path))
    for video, about in data.items():
        check = _Check(str(path), prefix=video)
        about = about if isinstance(about, dict) else {}
        spans, sentences = about.get("timestamps"), about.get("sentences")
        if isinstance(spans, list) and isinstance(sentences, list) and len(spans) == len(sentences):
            for k in range(len(spans)):
                yield _tried(_activitynet_query, check, video, about, k)
        else:
            yield check.wrong("", "expected an object with as many 'timestamps' as 'sentences'")


def _activitynet_query(check: _Check, video: str, about: dict[str, Any], k: int) -> Moment:
    duration_s = check.duration("duration", about.get("duration"))
    span = check.span(f"timestamps[{k}]", about["timestamps"][k])
    query = check.text(f"sentences[{k}]", about["sentences"][k])
    return Moment(f"{video}_{k}", video, query, (span,), file=check.file).fitted(duration_s)


def _didemo(path: str | Path) -> _Found:
    """A JSON list of `annotation_id`, `video`, `description`, `times`: the first and last segment of each annotator."""
    data = parse_json(read_text(path), path)
    if not isinstance(data, list):
        raise tpo.RecordError(f"is {_kind(data)}, expected a list", file=str(path))
    for i, about in enumerate(data):
        yield _tried(_didemo_entry, _Check(str(path), prefix=f"[{i}]"), i, about)


def _didemo_entry(check: _Check, index: int, about: Any) -> Moment:
    """Its span is that of the annotator who agrees most with all, by the sum of IoUs; of several the first."""
    if not isinstance(about, dict):
        raise check.wrong("", f"is {_kind(about)}, expected an object")
    times = check.list("times", about.get("times"))
    for k, pair in enumerate(times):
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(x) is int for x in pair)):
            raise check.wrong(f"times[{k}]", f"is {pair!r}, expected the numbers of the first and the last segment")
        if not 0 <= pair[0] <= pair[1] <= LONGEST_S:
            raise check.wrong(f"times[{k}]", f"is {pair!r}, expected segments from 0, the last not before the first")
    if not times:
        raise check.wrong("times", "is empty, expected at least one annotator's segments")
    segments = np.array(times, dtype=float) + np.array([0, 1])
    first, end = segments[span_iou(segments[:, None], segments).sum(1).argmax()] * DIDEMO_SEGMENT_S
    video, query = check.text("video", about.get("video")), check.text("description", about.get("description"))
    return Moment(str(about.get("annotation_id", index)), video, query, ((float(first), float(end)),), file=check.file)


FORMATS: dict[str, Callable[[str | Path], _Found]] = {
    "charades-sta": _charades_sta,
    "qvhighlights": _qvhighlights,
    "activitynet-captions": _activitynet_captions,
    "didemo": _didemo,
}


# -- checks ------------------------------------------------------------------------------------------------------------


class _Check:
    """Fields of one entry, checked; errors name the place."""

    def __init__(self, file: str, line: int | None = None, prefix: str = "") -> None:
        self.file, self.number, self.prefix = file, line, prefix

    def wrong(self, field: str, message: str) -> tpo.RecordError:
        path = ".".join(part for part in (self.prefix, field) if part) or None
        return tpo.RecordError(message, file=self.file, line=self.number, field=path)

    def text(self, field: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(field, f"is {_kind(value)}, expected text")
        return value.strip()

    def list(self, field: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self.wrong(field, f"is {_kind(value)}, expected a list")
        return value

    def seconds(self, field: str, value: str) -> float:
        try:
            return float(value)
        except ValueError:
            raise self.wrong(field, f"is {value!r}, expected seconds") from None

    def duration(self, field: str, value: Any) -> float:
        if not is_number(value) or not 0 < value <= LONGEST_S:
            raise self.wrong(field, f"is {_kind(value)}, expected seconds above 0, at most {LONGEST_S}")
        return float(value)

    def spans(self, field: str, value: Any) -> tuple[tuple[float, float], ...]:
        spans = tuple(self.span(f"{field}[{k}]", span) for k, span in enumerate(self.list(field, value)))
        if not spans:
            raise self.wrong(field, "is empty, expected at least one span [start, end]")
        return spans

    def span(self, field: str, value: Any) -> tuple[float, float]:
        if not (isinstance(value, Sequence) and len(value) == 2 and all(is_number(time) for time in value)):
            raise self.wrong(field, f"is {value!r}, expected [start, end] in seconds")
        start, end = map(float, value)
        if start < 0:
            raise self.wrong(field, f"starts at {start:g}, expected seconds of at least 0")
        if end <= start:
            raise self.wrong(field, f"is [{start:g}, {end:g}], expected an end behind the start")
        return start, end


def _kind(value: Any) -> str:
    return "missing" if value is None else repr(value) if isinstance(value, (str, int, float)) else type(value).__name__
