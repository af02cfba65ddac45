"""Scorers of boxes: RefCOCO's accuracy, gRefCOCO's F1, COCO's average precision, recall and precision of sets.

Boxes are [x1, y1, x2, y2] in one unit, pixels or shares of the picture: no overlap depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

import tpo_plugin as tpo
from tpo_head_region.boxes import giou_loss, iou
from tpo_head_region.coco_ap import coco_ap

Box = Sequence[float]

REFCOCO = (
    "Acc@0.5 of RefCOCO, RefCOCO+ and RefCOCOg as papers report it: the share of sentences whose first box has an "
    "IoU of at least 0.5 with the true one. A sentence without a box is wrong. Not lmms-eval's refcoco_grounding, "
    "which asks one prompt for all sentences of an object and takes the best of all boxes, read as pixels and as 0 "
    "to 1000"
)
GREC = (
    "gRefCOCO's boxes (GREC): F1_score is the share of samples whose boxes are exactly the true ones, each of an "
    "IoU of at least 0.5, matched greedily from the highest pair; one without a target is right where no box is "
    "given. By IoU, as the paper says; its code compares GIoU, which is stricter (grec(giou=True)). All boxes of an"
    " answer are kept. A question without any task is a sample without a target too, but for region_set, whose records "
    "say so with an empty list; questions that want other heads are left out"
)
COCO = (
    "COCO's average precision of boxes, as pycocotools has it (12 numbers; -1 where there is nothing to find). Each"
    " question is a category, each box of its answer a detection, scored by the head; areas are those of boxes, and"
    " no truth is a crowd"
)
SETS = (
    "Recall, precision and F1 of all boxes of all answers, at an IoU of at least 0.5, each box in one pair at the most,"
    " matched greedily from the highest pair of an answer, whatever the order of its boxes; AP as pycocotools has it,"
    " of one category, by the head's scores; and gRefCOCO's numbers of the same boxes (see grefcoco). A question "
    "without any task is a sample without a target too, but for region_set, whose records say so with an empty list; "
    "questions that want other heads are left out"
)


def refcoco(predicted: Sequence[Box | None], truth: Sequence[Box]) -> dict[str, float]:
    """`Acc@0.5`, 0 to 1, and how many sentences are `missing` a box (None); see `REFCOCO`."""
    _same_number(predicted, truth)
    hits = [
        box is not None and bool(_overlaps([box], [true])[0, 0] >= 0.5)
        for box, true in zip(predicted, truth, strict=True)
    ]
    missing = sum(box is None for box in predicted)
    return {"Acc@0.5": float(np.mean(hits)) if hits else 0.0, "sentences": len(hits), "missing": missing}


def grec(
    predicted: Sequence[Sequence[Box]],
    truth: Sequence[Sequence[Box]],
    scores: Sequence[Sequence[float]] | None = None,
    *,
    giou: bool = False,
) -> dict[str, float]:
    """`F1_score`, `T-acc` and `N-acc`, 0 to 1, of samples with any number of boxes; see `GREC`.

    Args:
        predicted: The boxes of each sample.
        truth: The true ones; none for a sample without a target.
        scores: Of the predicted ones; those below 0.7 are left out. None keeps all.
        giou: Whether GIoU is compared, as the published code does.

    `T-acc` is the share of the samples with a target for which any box is given, `N-acc` that of the others for which
    none is; each is left out where there is no such sample.
    """
    _same_number(predicted, truth)
    right: list[bool] = []
    targeted: list[bool] = []
    untargeted: list[bool] = []
    for number, (boxes, true) in enumerate(zip(predicted, truth, strict=True)):
        kept = [box for k, box in enumerate(boxes) if scores is None or scores[number][k] >= 0.7]
        (targeted if len(true) else untargeted).append(bool(kept) == bool(len(true)))
        hits = _matched(_overlaps(kept, true, giou=giou)) if kept and len(true) else 0
        right.append(hits == len(kept) == len(true))
    found = {"F1_score": float(np.mean(right)) if right else 0.0, "samples": len(right)}
    found |= {"T-acc": float(np.mean(targeted))} if targeted else {}
    return found | ({"N-acc": float(np.mean(untargeted))} if untargeted else {})


def sets(
    predicted: Sequence[Sequence[Box]], truth: Sequence[Sequence[Box]], scores: Sequence[Sequence[float]] | None = None
) -> dict[str, float]:
    """`recall`, `precision` and `F1`, with `scores` `ap@0.5` and `ap`, and what `grec` gives, 0 to 1; see `SETS`.

    Boxes as in `grec`; all are kept, whatever their score. A number that there is nothing to take of is left out.
    """
    _same_number(predicted, truth)
    hits = sum(_matched(_overlaps(a, b)) for a, b in zip(predicted, truth, strict=True) if len(a) and len(b))
    given, wanted = sum(map(len, predicted)), sum(map(len, truth))
    found = {"recall": hits / wanted} if wanted else {}
    found |= {"precision": hits / given} if given else {}
    found |= {"F1": 2 * hits / (given + wanted)} if given or wanted else {}
    if scores is not None and wanted:
        found |= set_ap(predicted, truth, scores)
    return found | grec(predicted, truth)


def set_ap(
    predicted: Sequence[Sequence[Box]], truth: Sequence[Sequence[Box]], scores: Sequence[Sequence[float]]
) -> dict[str, float]:
    """`ap@0.5` and `ap` (IoU 0.5 to 0.95) as COCO takes them, of sets that are one category; at least one true box."""
    wanted: list[dict[str, Any]] = []
    given: list[dict[str, Any]] = []
    for number, (boxes, true, of_boxes) in enumerate(zip(predicted, truth, scores, strict=True)):
        where = {"image_id": number, "category_id": 0}
        wanted += [where | {"id": 1, "bbox": _corner_and_size(box), "area": 0.0, "iscrowd": 0} for box in true]
        given += [where | {"bbox": _corner_and_size(b), "score": s} for b, s in zip(boxes, of_boxes, strict=True)]
    numbers = coco_ap(wanted, given, images=range(len(truth)))
    return {"ap@0.5": numbers["AP50"], "ap": numbers["AP"]}


def _corner_and_size(box: Box) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def _matched(overlaps: np.ndarray) -> int:
    """How many pairs of at least 0.5 there are, from the highest on, each box in one."""
    left, hits = overlaps.copy(), 0
    while left.size and left.max() >= 0.5:
        row, column = np.unravel_index(left.argmax(), left.shape)
        left = np.delete(np.delete(left, row, 0), column, 1)
        hits += 1
    return hits


def _overlaps(first: Sequence[Box], second: Sequence[Box], *, giou: bool = False) -> np.ndarray:
    """IoU, or GIoU, of N boxes with M, as [N, M]."""
    a, b = (torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4) for boxes in (first, second))
    a, b = a[:, None], b[None]
    return (1 - giou_loss(a, b) if giou else iou(a, b)).numpy()


def _same_number(predicted: Sequence[Any], truth: Sequence[Any]) -> None:
    if len(predicted) != len(truth):
        raise tpo.TPOError(f"{len(predicted)} predictions were given for {len(truth)} true ones; expected as many")


# -- of answers --------------------------------------------------------------------------------------------------------


def benchmarks(*, empty_sets: bool) -> dict[str, tpo.Benchmark]:
    """By name. With `empty_sets` a task may say that there is nothing, and questions without a task do not count."""
    return {
        "refcoco": tpo.Benchmark(REFCOCO, _refcoco),
        "grefcoco": tpo.Benchmark(GREC, partial(_grec, empty_sets=empty_sets)),
        "coco": tpo.Benchmark(COCO, _coco),
        "sets": tpo.Benchmark(SETS, partial(_sets, empty_sets=empty_sets)),
    }


def _refcoco(answers: Sequence[tpo.HeadAnswer]) -> dict[str, Any]:
    asked = [answer for answer in answers if answer.tasks]
    several = [answer for answer in asked if len(_true(answer)) != 1]
    if several:
        raise tpo.TPOError(
            f"refcoco: {several[0].question!r} wants {len(_true(several[0]))} boxes; expected one a sentence (grefcoco "
            "is for several)"
        )
    return refcoco([next(iter(_given(answer)), None) for answer in asked], [_true(answer)[0] for answer in asked])


def _grec(answers: Sequence[tpo.HeadAnswer], *, empty_sets: bool) -> dict[str, Any]:
    samples = [answer for answer in answers if answer.tasks or not empty_sets]
    return grec(list(map(_given, samples)), list(map(_true, samples))) | _counts(samples)


def _sets(answers: Sequence[tpo.HeadAnswer], *, empty_sets: bool) -> dict[str, Any]:
    samples = [answer for answer in answers if answer.tasks or not empty_sets]
    found = sets(list(map(_given, samples)), list(map(_true, samples)), list(map(_scores, samples)))
    return found | _counts(samples)


def _counts(samples: Sequence[tpo.HeadAnswer]) -> dict[str, int]:
    """How many have a target, and how many have none."""
    targeted = sum(bool(_true(sample)) for sample in samples)
    return {"targeted": targeted, "untargeted": len(samples) - targeted}


def _coco(answers: Sequence[tpo.HeadAnswer]) -> dict[str, Any]:
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for answer in answers:
        where = {"image_id": answer.medium, "category_id": answer.question}
        scale = np.array([answer.width or 1, answer.height or 1] * 2, dtype=float)
        for box in _true(answer):
            bbox = _corner_and_size((np.array(box) * scale).tolist())
            truth.append(where | {"id": len(truth) + 1, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0})
        for box, score in zip(_given(answer), _scores(answer), strict=True):
            found.append(where | {"bbox": _corner_and_size((np.array(box) * scale).tolist()), "score": score})
    return coco_ap(truth, found, images=[answer.medium for answer in answers])


def _given(answer: tpo.HeadAnswer) -> list[list[float]]:
    return [box for value in answer.values for box in boxes_of(value)]


def boxes_of(value: Any) -> list[list[float]]:
    """The boxes of a prediction: the one of `region`, or all of `region_set`."""
    return value["boxes_xyxy"].tolist() if isinstance(value, dict) else [value.tolist()]


def _scores(answer: tpo.HeadAnswer) -> list[float]:
    """Of each box."""
    pairs = zip(answer.values, answer.scores, strict=True)
    found = [value["scores"].tolist() if isinstance(value, dict) else [score or 0.0] for value, score in pairs]
    return [score for scores in found for score in scores]


def _true(answer: tpo.HeadAnswer) -> list[Any]:
    return [box for task in answer.tasks for box in task["boxes"]]
