"""Published scorers of whole answers: ReasonSeg, gRefCOCO's masks, MeViS, LaSOT, GOT-10k.

See `jf.py` for objects of a video by J and F, `metrics.py` for masks of pictures, `tracking.py` for boxes of a video.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import tpo_plugin as tpo
from tpo_head_mask.masks import as_mask, box_of, read_mask
from tpo_head_mask.metrics import AnswerScores, IoUScores, mask_at
from tpo_head_mask.tracking import TrackingScores

REASONSEG = (
    "gIoU and cIoU of ReasonSeg (LISA), 0 to 1: the mean over pictures of I / U, 1 where both masks are empty (LISA"
    " adds 1e-5 to U), and all intersections over all unions. The masks of an answer are united, and so are the "
    "true ones"
)
GRES = (
    "gRefCOCO's masks (GRES, ReLA's code), 0 to 1: gIoU is the mean of I / U, where a sample without a target is 1 "
    "if no mask is given, else 0; cIoU is all I over all U, to which a mask that was given for nothing adds itself."
    " Pr@ is of samples with a target. T-acc and N-acc: the share of those with a target that got a mask, and of "
    "the others that got none: a model that gives nothing has all of the latter. A question without any task is a "
    "sample without a target too; questions that want other heads are left out"
)
MEVIS = (
    "J&F, J and F of MeViS, 0 to 1: all frames count, the masks of an answer are united, and so are those that are "
    "meant; the mean is over expressions. An answer without a mask is empty masks; its script leaves an expression "
    "out where a picture is missing, here none is"
)
LASOT = (
    "LaSOT's one-pass evaluation, 0 to 100, of the boxes around the masks: the first frame is the given one, a "
    "frame without a box has that of the frame before. success is the mean over the thresholds 0, 0.05, ..., 1 of "
    "the share of frames that overlap by more, so that 95.24 is perfect; precision is within 20 pixels, normalised "
    "precision within 0.2 of the box's sides. Frames without the object are in the denominator and never right. "
    "Each is the mean over sequences: one whose answer has no mask is 0. The toolkit leaves out of success those in "
    "which nothing overlaps, this does not. Not the toolkit of GOT-10k, which scores LaSOT otherwise"
)
GOT10K = (
    "GOT-10k as its toolkit has it, 0 to 100, of the boxes around the masks: without the first frame and those that"
    " do not show the object, boxes put into the picture, over the frames of all sequences together: ao is the mean"
    " overlap, sr50 and sr75 the share that overlaps by more. Published numbers are the test server's"
)


def gres(predicted: Iterable[Any | None], truth: Iterable[Any | None]) -> dict[str, float]:
    """`gIoU`, `cIoU`, `Pr@0.7`, `Pr@0.8`, `Pr@0.9`, `T-acc` and `N-acc`, 0 to 1; see `GRES`.

    Args:
        predicted: Of each sample its mask [H, W], or None where it is said that there is nothing.
        truth: The true mask, or None of a sample without a target.

    T-acc, with Pr@, and N-acc are left out where there is no such sample.
    """
    ious, targeted, declared = [], [], []
    intersections = unions = 0
    for guess, true in zip(predicted, truth, strict=True):
        if true is None:
            declared.append(guess is None)
            ious.append(float(guess is None))
            unions += 0 if guess is None else int(as_mask(guess).sum())
            continue
        wanted = as_mask(true)
        given = np.zeros_like(wanted) if guess is None else _same_size(as_mask(guess), wanted)
        both, either = int((given & wanted).sum()), int((given | wanted).sum())
        intersections, unions = intersections + both, unions + either
        ious.append(both / either if either else 0.0)
        targeted.append((guess is not None, ious[-1]))
    found = {"gIoU": _mean(ious), "cIoU": intersections / unions if unions else 0.0, "samples": len(ious)}
    if targeted:
        found |= {f"Pr@{least}": _mean([value >= least for _, value in targeted]) for least in (0.7, 0.8, 0.9)}
        found["T-acc"] = _mean([given for given, _ in targeted])
    return found | ({"N-acc": _mean(declared)} if declared else {})


def _same_size(guess: np.ndarray, truth: np.ndarray) -> np.ndarray:
    if guess.shape != truth.shape:
        raise tpo.TPOError(f"the predicted mask is of shape {guess.shape}, the true one of {truth.shape}")
    return guess


def _mean(values: Sequence[Any]) -> float:
    return float(np.mean(values)) if values else 0.0


# -- of answers --------------------------------------------------------------------------------------------------------


def benchmarks() -> dict[str, tpo.Benchmark]:
    """By name."""
    return {
        "reasonseg": tpo.Benchmark(REASONSEG, _reason_seg),
        "gres": tpo.Benchmark(GRES, _gres),
        "mevis": tpo.Benchmark(MEVIS, _mevis),
        "lasot": tpo.Benchmark(LASOT, _lasot),
        "got10k": tpo.Benchmark(GOT10K, _got10k),
    }


def _gres(answers: Sequence[tpo.HeadAnswer]) -> dict[str, Any]:
    truth = [_true(answer) for answer in answers]
    targeted = sum(mask is not None for mask in truth)
    counts = {"targeted": targeted, "untargeted": len(truth) - targeted}
    return gres([_given(answer) for answer in answers], truth) | counts


def _reason_seg(answers: Sequence[tpo.HeadAnswer]) -> dict[str, Any]:
    scores = IoUScores()
    for answer in answers:
        true, given = _true(answer), _given(answer)
        if true is not None:
            scores.add(np.zeros_like(true) if given is None else given, true)
    return scores.mean() | {"pictures": scores.num_images}


def _mevis(answers: Sequence[tpo.HeadAnswer]) -> dict[str, Any]:
    scores, asked = AnswerScores(), [answer for answer in answers if answer.tasks]
    for answer in asked:
        scores.add(answer.values, answer.tasks)
    return scores.mean() | {"expressions": len(asked)}


def _given(answer: tpo.HeadAnswer) -> np.ndarray | None:
    """All masks of the first frame in one; None where none was given."""
    masks = [as_mask(value["masks"][0]) for value in answer.values if value["masks"]]
    return np.logical_or.reduce(masks) if masks else None


def _true(answer: tpo.HeadAnswer) -> np.ndarray | None:
    masks = [read_mask(mask) for task in answer.tasks for mask in task.get("masks", ())[:1] if mask is not None]
    return np.logical_or.reduce(masks) if masks else None


def _lasot(answers: Sequence[tpo.HeadAnswer]) -> dict[str, Any]:
    asked = [answer for answer in answers if answer.tasks]
    answered = [answer for answer in asked if answer.values]
    # Where nothing is predicted the box before holds; in an answer without a mask that is the given one, not its own.
    found = dict.fromkeys(("success", "precision", "normalised_precision"), 0.0) | _tracks(answered, "lasot")
    found = {name: value * len(answered) / max(len(asked), 1) for name, value in found.items()}
    return found | {"sequences": len(asked), "missing": len(asked) - len(answered)}


def _got10k(answers: Sequence[tpo.HeadAnswer]) -> dict[str, Any]:
    asked = [answer for answer in answers if answer.tasks]
    missing = sum(not answer.values for answer in asked)
    return _tracks(asked, "got10k") | {"sequences": len(asked), "missing": missing}


def _tracks(answers: Sequence[tpo.HeadAnswer], convention: str) -> dict[str, float]:
    scores = TrackingScores(convention)
    for number, answer in enumerate(answers):
        task = answer.tasks[0]
        if "boxes" not in task:
            raise tpo.TPOError(f"{answer.question!r} wants masks; expected 'boxes', for a scorer of tracks")
        times = task.get("times") or [0.0]
        masks = [mask_at(value, time_s) for value in answer.values[:1] for time_s in times] or [None] * len(times)
        found = [None if mask is None else box_of(as_mask(mask)) for mask in masks]
        size = answer.height or 1, answer.width or 1
        scores.add(f"{answer.medium}, {number}", _pixels(found, size), _pixels(task["boxes"], size), size=size)
    return scores.mean()


def _pixels(boxes_xyxy: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    """[F, 4] in pixels; NaN where there is none."""
    scale = np.array([size[1], size[0]] * 2, dtype=float)
    return np.array([[np.nan] * 4 if box is None else box for box in boxes_xyxy], dtype=float) * scale
