"""Layouts with a query a line: Charades-STA, QVHighlights, TimeLens-100K."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tpo_head_temporal.formats.moments import (
    Moment,
    Moments,
    Span,
    given,
    list_of,
    number_of,
    object_of,
    span_of,
    spans_of,
    text_of,
)
from tpo_plugin.checks import is_number
from tpo_plugin.convert import Place, Report, Rows, lines

QV_CLIP_S = 2.0


@dataclass(kw_only=True)
class CharadesSTA(Moments):
    """Charades-STA: charades_sta_train.txt, lines `VIDEO START END##SENTENCE`.

    Layout seen on the published files. Lengths are those of the videos.
    """

    def moments(self, report: Report) -> Iterator[Moment]:
        counts: Counter[str] = Counter()
        for place, line in lines(self.source):
            with report.faults():
                head, marks, sentence = line.partition("##")
                words = head.split()
                if not marks or len(words) != 3:
                    raise place.fault(line, "'VIDEO START END##SENTENCE'")
                times = [_seconds(word, place.at(name)) for name, word in zip(("start", "end"), words[1:], strict=True)]
                query = text_of(sentence, place.at("sentence"))
                counts[words[0]] += 1
                id = f"charades-sta:{words[0]}_{counts[words[0]]}"
                yield Moment(id, words[0], query, (span_of(times, place.at("start, end")),), place)


def _seconds(word: str, place: Place) -> float:
    try:
        return float(word)
    except ValueError:
        raise place.fault(word, "seconds") from None


@dataclass(kw_only=True)
class QVHighlights(Moments):
    """QVHighlights: highlight_train_release.jsonl with qid, query, vid, duration, relevant_windows and saliency.

    Layout seen on the published files. A file in which no line has relevant_windows, as that of the test split, gives
    prompts without answers.
    """

    def moments(self, report: Report) -> Iterator[Moment]:
        rows = Rows(self.source)
        is_test = not any(self._has_windows(rows, index) for index in range(len(rows)))
        for index in range(len(rows)):
            with report.faults():
                yield self._moment(object_of(rows[index], rows.place(index)), rows.place(index), is_test)

    def _has_windows(self, rows: Rows, index: int) -> bool:
        try:
            return "relevant_windows" in rows[index]
        except (ValueError, TypeError):  # no object; reported when it is read as a moment
            return False

    def _moment(self, row: dict[str, Any], place: Place, is_test: bool) -> Moment:
        qid = row.get("qid")
        if isinstance(qid, bool) or not isinstance(qid, (int, str)):
            raise place.at("qid").fault(given(qid), "a number or text")
        duration_s = number_of(row.get("duration"), place.at("duration"))
        windows = None if is_test else spans_of(row.get("relevant_windows"), place.at("relevant_windows"))
        saliency = None if is_test else _saliency(row, duration_s, place)
        return Moment(
            f"qvhighlights:{qid}",
            text_of(row.get("vid"), place.at("vid")),
            text_of(row.get("query"), place.at("query")),
            windows,
            place,
            duration_s,
            saliency,
            QV_CLIP_S,
        )


def _saliency(row: Mapping[str, Any], duration_s: float, place: Place) -> tuple[float, ...] | None:
    """Summed scores of every clip; None where the line has no `saliency_scores`."""
    if row.get("saliency_scores") is None:
        return None
    ids = list_of(row.get("relevant_clip_ids"), place.at("relevant_clip_ids"))
    rated = list_of(row["saliency_scores"], place.at("saliency_scores"))
    if len(ids) != len(rated):
        raise place.at("saliency_scores").fault(
            f"of length {len(rated)}", f"three scores for each of the {len(ids)} relevant_clip_ids"
        )
    sums = [0.0] * max(1, int(duration_s / QV_CLIP_S))
    for k, (clip, scores) in enumerate(zip(ids, rated, strict=True)):
        if isinstance(clip, bool) or not isinstance(clip, int) or not 0 <= clip < len(sums):
            raise place.at("relevant_clip_ids", k).fault(clip, f"0 to {len(sums) - 1}")
        if not (isinstance(scores, list) and len(scores) == 3 and all(is_number(x) and 0 <= x <= 4 for x in scores)):
            raise place.at("saliency_scores", k).fault(scores, "three numbers from 0 to 4")
        sums[clip] = float(sum(scores))
    return tuple(sums)


@dataclass(kw_only=True)
class TimeLens100K(Moments):
    """TimeLens-100K: JSON Lines with video_path, duration and events of query and span.

    Layout as its trainer reads it. A span is [start, end], or a list of them.
    """

    def moments(self, report: Report) -> Iterator[Moment]:
        rows = Rows(self.source)
        for index in range(len(rows)):
            place = rows.place(index)
            with report.faults():
                row = object_of(rows[index], place)
                video = text_of(row.get("video_path"), place.at("video_path")).rpartition("/")[2]
                duration_s = number_of(row.get("duration"), place.at("duration"))
                for k, event in enumerate(list_of(row.get("events"), place.at("events"))):
                    at = place.at("events", k)
                    with report.faults():
                        query = text_of(object_of(event, at).get("query"), at.at("query"))
                        spans = one_or_many(event.get("span"), at.at("span"))
                        yield Moment(f"timelens-100k:{index}_{k}", video, query, spans, at, duration_s)


def one_or_many(value: Any, place: Place) -> tuple[Span, ...]:
    is_many = isinstance(value, list) and value and isinstance(value[0], list)
    return spans_of(value, place) if is_many else (span_of(value, place),)
