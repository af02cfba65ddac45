"""Published scorers of boxes: RefCOCO's accuracy, gRefCOCO's F1, COCO's average precision.

Boxes are [x1, y1, x2, y2] in one unit, pixels or shares of the picture: no overlap depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    " answer are kept"
)
COCO = (
    "COCO's average precision of boxes, as pycocotools has it (12 numbers; -1 where there is nothing to find). Each"
    " question is a category, each box of its answer a detection, scored by the head; areas are those of boxes, and"
    " no truth is a crowd"
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


def benchmarks() -> dict[str, tpo.Benchmark]:
    """By name."""
    return {
        "refcoco": tpo.Benchmark(REFCOCO, _refcoco),
        "grefcoco": tpo.Benchmark(GREC, _grec),
        "coco": tpo.Benchmark(COCO, _coco),
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


def _grec(answers: Sequence[tpo.HeadAnswer]) -> dict[str, Any]:
    return grec([_given(answer) for answer in answers], [_true(answer) for answer in answers])


def _coco(answers: Sequence[tpo.HeadAnswer]) -> dict[str, Any]:
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for answer in answers:
        where = {"image_id": answer.medium, "category_id": answer.question}
        scale = np.array([answer.width or 1, answer.height or 1] * 2, dtype=float)
        for box in _true(answer):
            x1, y1, x2, y2 = (np.array(box) * scale).tolist()
            bbox = [x1, y1, x2 - x1, y2 - y1]
            truth.append(where | {"id": len(truth) + 1, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0})
        for box, score in zip(_given(answer), answer.scores, strict=True):
            x1, y1, x2, y2 = (np.array(box) * scale).tolist()
            found.append(where | {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": 0.0 if score is None else score})
    return coco_ap(truth, found, images=[answer.medium for answer in answers])


def _given(answer: tpo.HeadAnswer) -> list[list[float]]:
    return [value.tolist() for value in answer.values]


def _true(answer: tpo.HeadAnswer) -> list[Any]:
    return [box for task in answer.tasks for box in task["boxes"]]
