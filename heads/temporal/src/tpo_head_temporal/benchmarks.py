"""Published scorers of moments: Charades-STA, ActivityNet-Captions, NExT-GQA. numpy only; see `qvhighlights` for that.

Spans are [start, end] in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import tpo_plugin as tpo
from tpo_head_temporal.span_metrics import RECALL_AT, span_iou

Span = Sequence[float]

_SLACK = 1e-9
"""What rounding may do to an overlap: 6.1 s of which 3.05 s are found overlap by a half, whatever the last bit says."""

CHARADES = (
    "R@n, IoU=m in percent: a query counts where one of its first n spans has an IoU of at least m with a true one (as "
    "TALL, Moment-DETR, TimeLens and lmms-eval; 2D-TAN and Ego4D's NLQ ask for more than m, recall(strict=True)). mIoU "
    "is of the first span. A query without a span is 0 and counts. Each query counts, also where it is there twice"
)
ACTIVITYNET = (
    CHARADES
    + ". True spans are cut to the video, and queries of which nothing is left do not count: `queries` says of "
    "how many it is. val_1 and val_2 are different queries of the same videos: name the file"
)
NEXTGQA = (
    "NExT-GQA in percent: of several true spans the best one counts, for IoU and for IoP (intersection / predicted "
    "length) apart; a span without length has an IoP of 1 where it lies in a true one. Acc@GQA: the answer is the "
    "record's, to the letter, and IoP at least 0.5. As published, a question without a span is skipped, not counted; "
    "`coverage` is the share of those that have one, and the numbers `over all` count the others as 0"
)


def recall(
    predicted: Sequence[Sequence[Span]],
    truth: Sequence[Sequence[Span]],
    *,
    n: Sequence[int] = (1, 5),
    m: Sequence[float] = RECALL_AT,
    strict: bool = False,
) -> dict[str, float]:
    """`R@n, IoU=m` and `mIoU`, 0 to 100; `queries`, and how many of them are `missing` a span. See `CHARADES`.

    Args:
        predicted: Of each query its spans, the best first; none where it has no answer.
        truth: Of each query its true spans; of several the best counts.
        n: How many of the first spans count.
        m: What they are to overlap by, 0 to 1.
        strict: Whether an overlap of exactly m is too little.
    """
    _same_number(predicted, truth)
    ious = [_overlaps(found, spans).max(1).tolist() for found, spans in zip(predicted, truth, strict=True)]
    best = {k: np.array([max(row[:k], default=-1.0) for row in ious]) for k in (1, *n)}
    found: dict[str, float] = {}
    for k in n:
        for least in m:
            hits = best[k] > least + _SLACK if strict else best[k] >= least - _SLACK
            found[f"R@{k}, IoU={least}"] = _percent(hits)
    found["mIoU"] = _percent(best[1].clip(0))
    return found | {"queries": len(ious), "missing": sum(not row for row in ious)}


def activitynet(
    predicted: Sequence[Sequence[Span]], truth: Sequence[Span], durations_s: Sequence[float]
) -> dict[str, float]:
    """As `recall`, of one true span a query, which is cut to its video of `durations_s`; see `ACTIVITYNET`."""
    _same_number(predicted, truth)
    cut = [[max(start, 0.0), min(end, long)] for (start, end), long in zip(truth, durations_s, strict=True)]
    kept = [(found, [span]) for found, span in zip(predicted, cut, strict=True) if span[1] > span[0]]
    return recall([found for found, _ in kept], [spans for _, spans in kept]) | {"left_out": len(cut) - len(kept)}


def next_gqa(
    predicted: Sequence[Span | None], truth: Sequence[Sequence[Span]], right: Sequence[bool]
) -> dict[str, float]:
    """`Acc@GQA`, `mIoP`, `mIoU`, `TIoP@0.3`, …, 0 to 100, and the same `over all`; see `NEXTGQA`.

    Args:
        predicted: The span of each question; None where there is none.
        truth: Its true spans.
        right: Whether it is answered right.
    """
    _same_number(predicted, truth)
    pairs = [([] if span is None else [span], spans) for span, spans in zip(predicted, truth, strict=True)]
    ious = np.array([_overlaps(found, spans).max(initial=0.0) for found, spans in pairs])
    iops = np.array(
        [max((_iop(span, true) for span in found for true in spans), default=0.0) for found, spans in pairs]
    )
    given = np.array([span is not None for span in predicted], dtype=bool)
    values = {"Acc@GQA": (iops >= 0.5 - _SLACK) & np.array(right, dtype=bool), "mIoP": iops, "mIoU": ious}
    for name, overlaps in (("TIoP", iops), ("TIoU", ious)):
        values |= {f"{name}@{least}": overlaps >= least - _SLACK for least in (0.3, 0.5)}
    found = {name: _percent(value[given]) for name, value in values.items()}
    found |= {f"{name} over all": _percent(value) for name, value in values.items()}
    return found | {"coverage": _percent(given), "questions": len(given)}


def _overlaps(spans: Sequence[Span], true: Sequence[Span]) -> np.ndarray:
    """IoU [P, G] of predicted spans with true ones."""
    first, second = (np.asarray(each, dtype=float).reshape(-1, 2) for each in (spans, true))
    return span_iou(first[:, None], second[None])


def _iop(span: Span, true: Span) -> float:
    """Intersection / length of `span`; of one without length 1 where it lies in the true one."""
    length = span[1] - span[0]
    if length <= 0:
        return float(true[0] <= span[0] <= true[1])
    return max(min(span[1], true[1]) - max(span[0], true[0]), 0.0) / length


def _percent(values: np.ndarray) -> float:
    return 100 * float(values.mean()) if len(values) else 0.0


def _same_number(predicted: Sequence[Any], truth: Sequence[Any]) -> None:
    if len(predicted) != len(truth):
        raise tpo.TPOError(f"{len(predicted)} predictions were given for {len(truth)} true ones; expected as many")


# -- of answers --------------------------------------------------------------------------------------------------------


def benchmarks() -> dict[str, tpo.Benchmark]:
    """By name."""
    return {
        "charades": tpo.Benchmark(CHARADES, _charades),
        "activitynet": tpo.Benchmark(ACTIVITYNET, _activitynet),
        "nextgqa": tpo.Benchmark(NEXTGQA, _next_gqa),
    }


def _charades(answers: Sequence[tpo.HeadAnswer]) -> dict[str, Any]:
    asked = [answer for answer in answers if answer.tasks]
    return recall([_given(answer) for answer in asked], [_true(answer) for answer in asked])


def _activitynet(answers: Sequence[tpo.HeadAnswer]) -> dict[str, Any]:
    asked = [answer for answer in answers if answer.tasks]
    durations = [float("inf") if answer.duration_s is None else answer.duration_s for answer in asked]
    return activitynet([_given(answer) for answer in asked], [_true(answer)[0] for answer in asked], durations)


def _next_gqa(answers: Sequence[tpo.HeadAnswer]) -> dict[str, Any]:
    asked = [answer for answer in answers if answer.tasks]
    first = [next(iter(_given(answer)), None) for answer in asked]
    return next_gqa(first, [_true(answer) for answer in asked], [a.text == a.reference for a in asked])


def _given(answer: tpo.HeadAnswer) -> list[list[float]]:
    """The spans of the first task token, the best first."""
    return [span for value in answer.values[:1] for span in np.asarray(value["spans_s"]).tolist()]


def _true(answer: tpo.HeadAnswer) -> list[Any]:
    return [span for task in answer.tasks for span in task["spans"]]
