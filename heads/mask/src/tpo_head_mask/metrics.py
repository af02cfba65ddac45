"""How well masks agree with the true ones: of images, of a head, and of whole answers. See `jf.py` for objects of a
video, `tracking.py` for boxes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

import tpo_plugin as tpo
from tpo_head_mask import rle
from tpo_head_mask.jf import JFScores, frame_scores
from tpo_head_mask.masks import as_mask, box_of, read_mask
from tpo_head_mask.tracking import box_iou


class IoUScores:
    """The mean of all images' IoU, "gIoU", and all intersections over all unions, "cIoU" (LISA, CVPR 2024), 0 to 1.

    Where there is nothing to segment and nothing was segmented, an image's IoU is 1; it adds nothing to "cIoU".
    """

    def __init__(self) -> None:
        self.num_images = 0
        self._ious, self._intersection, self._union = 0.0, 0, 0

    def add(self, predicted: Any, truth: Any, ignored: Any = None) -> None:
        """Adds an image: masks [H, W] of one size. What is `ignored` (a mask too) counts in neither."""
        predicted, truth = np.asarray(predicted, dtype=bool), np.asarray(truth, dtype=bool)
        if predicted.shape != truth.shape:
            raise tpo.TPOError(f"the predicted mask is of shape {predicted.shape}, the true one of {truth.shape}")
        if ignored is not None:
            counts = ~np.asarray(ignored, dtype=bool)
            predicted, truth = predicted & counts, truth & counts
        intersection, union = int((predicted & truth).sum()), int((predicted | truth).sum())
        self._ious += intersection / union if union else 1.0
        self._intersection += intersection
        self._union += union
        self.num_images += 1

    def mean(self) -> dict[str, float]:
        """Both scores; empty where nothing was added."""
        if not self.num_images:
            return {}
        cumulative = self._intersection / self._union if self._union else 1.0
        return {"gIoU": self._ious / self.num_images, "cIoU": cumulative}


class MaskMetrics(tpo.HeadMetrics):
    """Means over objects, "J&F", "J" and "F", and over all their frames, "gIoU" and "cIoU", each 0 to 1.

    Every frame of a target counts; for the first three from the first in which the object appears, and only objects
    that the truth has in one of them. For targets of which boxes alone are known, "box_iou": the mean overlap of the
    box around the first predicted mask and the true one.
    """

    def __init__(self, head: tpo.TaskHead) -> None:
        super().__init__(head)
        self._jf, self._iou = JFScores(skip_ends=False), IoUScores()
        self._box_ious: list[float] = []
        self._covered: list[np.ndarray] = []
        """For each true frame what share of each cell of a grid is covered, [GRID * GRID]."""

    def update(self, outputs: dict[str, Any], targets: dict[str, Any]) -> None:
        """Adds a batch: each value of `head.postprocess(outputs)` has "masks" for the frames that its target has, or,
        where both have "times", for those of the whole medium.

        `targets`: "masks", for each task token a mask or RLE for each frame, or no frame where only its box in
        "boxes_xyxy" [N, 4] is known.
        """
        for index, (value, truth) in enumerate(zip(self.head.postprocess(outputs), targets["masks"], strict=True)):
            if not len(truth):
                self.add_box(value["masks"][0], targets["boxes_xyxy"][index])
            elif "times" in value and "times" in targets:
                found = [mask_at(value, time_s) for time_s in targets["times"][index]]
                self.add([np.zeros_like(as_mask(truth[0])) if mask is None else mask for mask in found], truth)
            else:
                self.add(value["masks"], truth)

    def missed(self, targets: dict[str, Any]) -> bool:
        """Nothing was segmented, where the object is."""
        for truth in targets["masks"]:
            if len(truth):
                self.add([np.zeros_like(as_mask(mask)) for mask in truth], truth)
            else:
                self._box_ious.append(0.0)
                self.num_targets += 1
        return True

    def quality(self) -> float | None:
        found = self.compute()
        return found.get("J&F", found.get("box_iou"))

    def add(self, predicted: Sequence[Any], truth: Sequence[Any]) -> None:
        """Adds one object's frames: masks [H, W] or RLE. Raises `TPOError` for another number of frames, or sizes."""
        if len(predicted) != len(truth):
            raise tpo.TPOError(f"{len(predicted)} masks were predicted for {len(truth)} frames; expected as many")
        frames = [(as_mask(guess), as_mask(true)) for guess, true in zip(predicted, truth, strict=True)]
        for guess, true in frames:
            self._iou.add(guess, true)
            self._covered.append(_coverage(true))
        name = str(self.num_targets)
        self._jf.add_objects(name, {"": (true for _, true in frames)}, {"": (guess for guess, _ in frames)})
        self.num_targets += 1

    def add_box(self, predicted: Any, truth_xyxy: Any) -> None:
        """Adds an object by its box (0 to 1), of which no mask is known."""
        box = box_of(as_mask(predicted)) or [0.0, 0.0, 0.0, 0.0]
        self._box_ious.append(float(box_iou(np.array(box), np.array([float(value) for value in truth_xyxy]))))
        self.num_targets += 1

    def compute(self) -> dict[str, float]:
        boxes = {"box_iou": sum(self._box_ious) / len(self._box_ious)} if self._box_ious else {}
        return {**{name: value / 100 for name, value in self._jf.mean().items()}, **self._iou.mean(), **boxes}

    def constant(self) -> dict[str, float]:
        """Of the regions that more than some share of all true masks cover, the one with the greatest mean IoU with
        all, on a grid of 32 x 32 cells: "gIoU" about as a head would reach with it."""
        if not self._covered:
            return {}
        truth = np.stack(self._covered)
        share = truth.mean(0)
        regions = [share >= level for level in np.quantile(share, np.linspace(0, 0.98, 50))]
        return {"gIoU": max(_mean_iou(region, truth) for region in [*regions, np.zeros_like(regions[0])])}


GRID = 32


def _coverage(mask: np.ndarray) -> np.ndarray:
    cells = Image.fromarray(np.asarray(mask, dtype=np.uint8) * 255).resize((GRID, GRID), Image.Resampling.BOX)
    return np.asarray(cells, dtype=np.float32).ravel() / 255


def _mean_iou(region: np.ndarray, truth: np.ndarray) -> float:
    """Of a region [C] with masks [N, C]; 1 where both are empty."""
    shared, union = np.minimum(region, truth).sum(1), np.maximum(region, truth).sum(1)
    return float(np.divide(shared, union, out=np.ones_like(shared), where=union > 0).mean())


_SAME_TIME_S = 1e-3


class AnswerScores:
    """J, F and J&F of answers about whole videos or images, each 0 to 1: the union of an answer's masks against that of
    all objects that are meant.

    Every annotated frame counts, also those in which there is nothing to find; then the plain mean over answers: as
    MeViS, whose expressions may mean several objects, is evaluated.
    """

    def __init__(self, max_pixels: int = rle.MAX_PIXELS) -> None:
        self.max_pixels = max_pixels
        """What a true mask may have."""
        self._answers: list[tuple[float, float]] = []

    def add(self, values: Sequence[Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]]) -> None:
        """Adds an answer: the values of its predictions, none where it has no mask, and the record's target tasks.

        Raises `TPOError` where the tasks are of different times, or have no masks.
        """
        times = [task.get("times") or [0.0] for task in tasks]
        if not tasks or any("masks" not in task for task in tasks) or any(each != times[0] for each in times):
            raise tpo.TPOError("an answer's tasks are to have 'masks', and all of them the same 'times'")
        scores = []
        for index, time_s in enumerate(times[0]):
            masks = [mask for task in tasks if (mask := task["masks"][index]) is not None]
            true = [read_mask(mask, max_pixels=self.max_pixels) for mask in masks]
            found = [rle.decode(mask, None) for value in values if (mask := mask_at(value, time_s)) is not None]
            if not true and not any(mask.any() for mask in found):
                scores.append((1.0, 1.0))
                continue
            nothing = np.zeros_like((true or found)[0])
            scores.append(frame_scores(_union(found, nothing), _union(true, nothing)))
        j, f = (float(np.mean(values)) for values in zip(*scores, strict=True))
        self._answers.append((j, f))

    def mean(self) -> dict[str, float]:
        """The three scores; empty where nothing was added."""
        if not self._answers:
            return {}
        j, f = (float(np.mean(values)) for values in zip(*self._answers, strict=True))
        return {"J&F": (j + f) / 2, "J": j, "F": f}


def mask_at(value: Mapping[str, Any], time_s: float) -> rle.RLE | None:
    """The mask that a value of `MaskHead` shows at a time, None before its first frame."""
    index = bisect_right(value["times"], time_s + _SAME_TIME_S) - 1
    return None if index < 0 else value["masks"][index]


def _union(masks: Sequence[np.ndarray], nothing: np.ndarray) -> np.ndarray:
    for mask in masks:
        if mask.shape != nothing.shape:
            raise tpo.TPOError(f"a mask is of shape {mask.shape}, another of the same frame of {nothing.shape}")
    return np.logical_or.reduce([nothing, *masks])
