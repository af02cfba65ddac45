"""The metrics of QVHighlights, in percent with two decimals: moment retrieval by length, and highlight detection.

Definitions are those of the public evaluator that comes with Moment-DETR and CG-DETR; here they are computed for all
queries at once. Q queries, P predicted spans, G true spans of a query, C clips of 2 seconds, A = 3 annotators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tpo_plugin as tpo
from tpo_head_temporal.formats.moments import LONGEST_S
from tpo_head_temporal.jsonlines import read_jsonl
from tpo_head_temporal.span_metrics import average_precision, best_iou, pad
from tpo_plugin.checks import is_number

CLIP_S = 2
LENGTHS_S = {"full": None, "long": (30, 150), "middle": (10, 30), "short": (0, 10)}
"""True spans of a split: longer than the first number of seconds, at most the second; None takes all."""
RECALL_THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(6, 20))
PRECISION_THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(10, 20))
LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}
"""The least score, of 0 to 4, that an annotator gives a highlight."""
MAX_SPANS = 10
"""Spans of a prediction that count for the average precision: the first ones listed."""
WINDOWS, SALIENCY = "pred_relevant_windows", "pred_saliency_scores"

Line = Mapping[str, Any]


def evaluate_files(predictions: str | Path, truth: str | Path, *, common_only: bool = False) -> dict[str, Any]:
    """`evaluate` of two JSON Lines files (also gzip). Raises `RecordError` with file, line and field."""
    found = [(str(path), read_jsonl(path)) for path in (predictions, truth)]
    lines = [[row for _, row in numbered] for _, numbered in found]
    places = [[f"{name}:{number}" for number, _ in numbered] for name, numbered in found]
    return evaluate(*lines, common_only=common_only, places=(places[0], places[1]))


def evaluate(
    predictions: Sequence[Line],
    truth: Sequence[Line],
    *,
    common_only: bool = False,
    places: tuple[Sequence[str], Sequence[str]] | None = None,
) -> dict[str, Any]:
    """All metrics that the first prediction has what is needed for: its spans, its saliency, or both.

    A prediction has `qid`, `pred_relevant_windows` ([start s, end s, score] each, the best first) and
    `pred_saliency_scores` (a number per clip); a line of the truth has `qid`, `duration`, `relevant_windows`,
    `relevant_clip_ids` and `saliency_scores` (of each relevant clip three numbers 0 to 4). Both must hold the same
    queries; with `common_only` those of one alone are left out. A query without a predicted span is a miss for the
    recall, and does not count for the average precision. `places` name the lines in messages. Raises `RecordError`.
    """
    names = places or (
        [f"predictions[{i}]" for i in range(len(predictions))],
        [f"truth[{i}]" for i in range(len(truth))],
    )
    rows, true_rows = _by_query(predictions, names[0]), _by_query(truth, names[1])
    if not rows:
        raise tpo.RecordError("no prediction was given; expected one for each query")
    _check_same(rows, true_rows, common_only)
    pairs = [(row, true_rows[qid]) for qid, row in rows.items() if qid in true_rows]
    if not pairs:
        raise tpo.RecordError("predictions and truth have no query in common; expected the same qids")
    first = predictions[0]
    moments = _moments(pairs) if WINDOWS in first else {}
    highlights = _highlights(pairs) if SALIENCY in first else {}
    if not moments and not highlights:
        raise tpo.RecordError(f"{names[0][0]}: has neither {WINDOWS!r} nor {SALIENCY!r}; expected one of them or both")
    return {"brief": _brief(moments, highlights), **highlights, **moments}


# -- moment retrieval --------------------------------------------------------------------------------------------------


def _moments(pairs: list[tuple[_Row, _Row]]) -> dict[str, Any]:
    spans, mask = pad([row.spans(WINDOWS, 3) for row, _ in pairs], 3)
    true, true_mask = pad([true.spans("relevant_windows", 2) for _, true in pairs], 2)
    if not true_mask.any(1).all():
        raise pairs[int(true_mask.any(1).argmin())][1].wrong("relevant_windows", "is empty; expected at least one span")
    if not mask.any():
        raise pairs[0][0].wrong(WINDOWS, "is empty in every prediction; expected [start, end, score] each")
    lengths = true[..., 1] - true[..., 0]
    results = {}
    for split, limits in LENGTHS_S.items():
        inside = true_mask if limits is None else true_mask & (lengths > limits[0]) & (lengths <= limits[1])
        results[split] = _split(spans, mask, true, inside)
    return results


def _split(spans: np.ndarray, mask: np.ndarray, true: np.ndarray, inside: np.ndarray) -> dict[str, Any]:
    """Metrics of the queries that have true spans `inside` [Q, G]; zeros where there is none."""
    kept = inside.any(1)
    spans, mask, true, inside = spans[kept], mask[kept], true[kept], inside[kept]
    recall, mean_iou = dict.fromkeys(RECALL_THRESHOLDS, 0.0), 0.0
    precision = dict.fromkeys(map(str, PRECISION_THRESHOLDS), 0.0) | {"average": 0.0}
    if kept.any():
        overlap = np.where(mask[:, 0], best_iou(spans[:, 0, :2], true, inside), 0)
        recall = {at: float(np.mean(overlap >= at)) for at in RECALL_THRESHOLDS}
        mean_iou = float(overlap.mean())
    kept = mask.any(1)
    if kept.any():
        scores = np.where(mask, spans[..., 2], -np.inf)[kept, :MAX_SPANS]
        each = average_precision(spans[kept, :MAX_SPANS, :2], scores, true[kept], inside[kept], PRECISION_THRESHOLDS)
        means = np.ascontiguousarray(each).mean(0)
        precision = dict(zip(map(str, PRECISION_THRESHOLDS), means.tolist(), strict=True)) | {"average": means.mean()}
    return {
        "MR-mIoU": _percent(mean_iou),
        "MR-mAP": {at: _percent(value) for at, value in precision.items()},
        "MR-R1": {str(at): _percent(value) for at, value in recall.items()},
    }


# -- highlights --------------------------------------------------------------------------------------------------------


def _highlights(pairs: list[tuple[_Row, _Row]]) -> dict[str, Any]:
    scores, given = pad([[[score] for score in row.numbers(SALIENCY)] for row, _ in pairs], 1)
    best = np.where(given, scores[..., 0], -np.inf).argmax(1)
    truth = [true.saliency() for _, true in pairs]
    num_clips = np.array([len(table) for table in truth])
    table, clips = np.zeros((len(pairs), num_clips.max(), 3)), np.arange(num_clips.max())
    for row, rated in enumerate(truth):
        table[row, : len(rated)] = rated
    # Cut to the video's clips, or filled up with zeros; what is behind its end comes last of all.
    predicted = np.zeros(table.shape[:2])
    width = min(predicted.shape[1], scores.shape[1])
    predicted[:, :width] = scores[:, :width, 0]
    predicted = np.where(clips < num_clips[:, None], predicted, -np.inf)
    positive = np.stack([table >= least for least in LEVELS.values()], 1)  # [Q, levels, C, A]
    precision = _clip_precision(predicted, np.moveaxis(positive, -1, 2).reshape(len(pairs), -1, len(clips)))
    precision = precision.reshape(len(pairs), len(LEVELS), -1)
    reached = np.minimum(best, len(clips) - 1)
    hit = positive[np.arange(len(pairs)), :, reached].any(-1) & (best < num_clips)[:, None]  # [Q, levels]
    return {
        f"HL-min-{name}": {
            "HL-mAP": _percent(float(np.ascontiguousarray(precision[:, level]).mean())),
            "HL-Hit1": _percent(float(hit[:, level].mean())),
        }
        for level, name in enumerate(LEVELS)
    }


def _clip_precision(predicted: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Average precision [Q, K] of scores [Q, C] for each of K labellings [Q, K, C].

    Clips of equal score enter together. Precision is made non-increasing in recall, and averaged over the distinct
    positive recalls, each at the highest score that reaches it, without weights. Without a positive it is 0.
    """
    order = np.argsort(-predicted, axis=1, kind="stable")
    predicted = np.take_along_axis(predicted, order, 1)
    true_positives = np.take_along_axis(positive, order[:, None], 2).cumsum(-1)
    changes = predicted[:, 1:] != predicted[:, :-1]
    edge = np.ones((len(predicted), 1), dtype=bool)
    starts, ends = np.concatenate((edge, changes), 1), np.concatenate((changes, edge), 1)
    ranks = np.arange(predicted.shape[1])
    first = np.maximum.accumulate(np.where(starts, ranks, 0), axis=1)  # where each clip's group of equal scores begins
    before = np.concatenate((np.zeros_like(true_positives[..., :1]), true_positives[..., :-1]), -1)
    before = np.take_along_axis(before, np.broadcast_to(first[:, None], before.shape), -1)
    precision = np.where(ends[:, None], true_positives / (ranks + 1), 0)
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    new = ends[:, None] & (true_positives > before)
    return np.where(new, envelope, 0).sum(-1) / np.maximum(new.sum(-1), 1)


# -- lines and results -------------------------------------------------------------------------------------------------


class _Row:
    """A line of a file, with its fields checked when they are taken."""

    def __init__(self, data: Line, place: str) -> None:
        self.data, self.place = data, place

    def wrong(self, field: str, message: str) -> tpo.RecordError:
        return tpo.RecordError(message, file=self.place, field=field)

    def spans(self, field: str, width: int) -> list[list[float]]:
        value = self._get(field)
        kind = "[start, end, score]" if width == 3 else "[start, end]"
        array = self._array(field, value, f"a list of {kind}")
        if len(value) and array.shape != (len(value), width):
            raise self.wrong(field, f"has the shape {list(array.shape)}, expected a list of {kind}")
        return value

    def numbers(self, field: str) -> list[float]:
        value = self._get(field)
        if not len(value) or self._array(field, value, "a list of numbers").ndim != 1:
            raise self.wrong(field, "expected a list of at least one number")
        return value

    def saliency(self) -> np.ndarray:
        """Scores [C, A] of every clip of the video."""
        ids, scores, duration = (self._get(field) for field in ("relevant_clip_ids", "saliency_scores", "duration"))
        if not is_number(duration) or not CLIP_S <= duration <= LONGEST_S:
            raise self.wrong("duration", f"is {duration!r}, expected seconds of at least one clip, {CLIP_S}")
        table = np.zeros((int(duration / CLIP_S), 3))
        rated = self._array("saliency_scores", scores, "three numbers for each relevant clip")
        if rated.shape != (len(ids), 3) and (len(ids) or len(scores)):
            raise self.wrong("saliency_scores", f"has the shape {list(rated.shape)}, expected [{len(ids)}, 3]")
        if not all(isinstance(i, int) and 0 <= i < len(table) for i in ids):
            raise self.wrong("relevant_clip_ids", f"is {ids!r}, expected numbers from 0 to {len(table) - 1}")
        if len(ids):
            table[ids] = rated
        return table

    def _get(self, field: str) -> Any:
        value = self.data.get(field)
        if value is None or (field != "duration" and not isinstance(value, (list, tuple, np.ndarray))):
            raise self.wrong(field, "is missing" if value is None else f"is {value!r}, expected a list")
        return value

    def _array(self, field: str, value: Any, expected: str) -> np.ndarray:
        try:
            array = np.array(value, dtype=float)
        except (ValueError, TypeError, OverflowError) as error:
            raise self.wrong(field, f"holds something else than {expected}") from error
        if not np.isfinite(array).all():
            raise self.wrong(field, "holds a number that is not finite")
        return array


def _by_query(lines: Sequence[Line], places: Sequence[str]) -> dict[Any, _Row]:
    rows: dict[Any, _Row] = {}
    for line, place in zip(lines, places, strict=True):
        row = _Row(line, place)
        if not isinstance(line, Mapping) or not isinstance(line.get("qid"), (int, str)):
            raise row.wrong("qid", "is missing or no number or text; expected an object with the query's id")
        if line["qid"] in rows:
            raise row.wrong("qid", f"is {line['qid']!r}, as in {rows[line['qid']].place}; expected each query once")
        rows[line["qid"]] = row
    return rows


def _check_same(rows: Mapping[Any, _Row], true_rows: Mapping[Any, _Row], common_only: bool) -> None:
    for name, own, other in (("truth", rows, true_rows), ("predictions", true_rows, rows)):
        alone = [qid for qid in own if qid not in other]
        if alone and not common_only:
            some = ", ".join(map(repr, alone[:5])) + (", …" if len(alone) > 5 else "")
            raise tpo.RecordError(
                f"{len(alone)} of {len(own)} queries are missing in the {name} (qid {some}); give both files the same "
                "queries, or evaluate the common ones alone (--common-only)"
            )


def _brief(moments: Mapping[str, Any], highlights: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of papers."""
    brief = {}
    if moments:
        full = moments["full"]
        brief = {f"MR-full-R1@{at}": full["MR-R1"][at] for at in ("0.3", "0.5", "0.7")}
        brief["MR-full-mAP"] = full["MR-mAP"]["average"]
        brief |= {f"MR-full-mAP@{at}": full["MR-mAP"][at] for at in ("0.5", "0.75")}
        brief["MR-full-mIoU"] = full["MR-mIoU"]
        brief |= {f"MR-{split}-mAP": moments[split]["MR-mAP"]["average"] for split in ("long", "middle", "short")}
    for level, values in highlights.items():
        brief |= {f"{level}-{name.removeprefix('HL-')}": value for name, value in values.items()}
    return brief


def _percent(value: float) -> float:
    return float(f"{100 * value:.2f}")
