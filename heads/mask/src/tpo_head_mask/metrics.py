"""How well masks agree with the true ones: of images, and of a head. See `jf.py` for video, `tracking.py` for boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import tpo_plugin as tpo
from tpo_head_mask.jf import JFScores
from tpo_head_mask.masks import as_mask, box_of
from tpo_head_mask.tracking import box_iou


class IoUScores:
    """The mean of all images' IoU, "gIoU", and all intersections over all unions, "cIoU" (LISA, CVPR 2024), 0 to 1.

    Where there is nothing to segment and nothing was segmented, an image's IoU is 1; it adds nothing to "cIoU".
    """

    def __init__(self) -> None:
        self.num_images = 0
        self._ious, self._intersection, self._union = 0.0, 0, 0

    def add(self, predicted: Any, truth: Any) -> None:
        """Adds an image: masks [H, W] of one size."""
        predicted, truth = np.asarray(predicted, dtype=bool), np.asarray(truth, dtype=bool)
        if predicted.shape != truth.shape:
            raise tpo.TPOError(f"the predicted mask is of shape {predicted.shape}, the true one of {truth.shape}")
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

    def update(self, outputs: dict[str, Any], targets: dict[str, Any]) -> None:
        """Adds a batch: each value of `head.postprocess(outputs)` has "masks" for the frames that its target has.

        `targets`: "masks", for each task token a mask or RLE for each frame, or no frame where only its box in
        "boxes_xyxy" [N, 4] is known.
        """
        for index, (value, truth) in enumerate(zip(self.head.postprocess(outputs), targets["masks"], strict=True)):
            if len(truth):
                self.add(value["masks"], truth)
            else:
                self.add_box(value["masks"][0], targets["boxes_xyxy"][index])

    def add(self, predicted: Sequence[Any], truth: Sequence[Any]) -> None:
        """Adds one object's frames: masks [H, W] or RLE. Raises `TPOError` for another number of frames, or sizes."""
        if len(predicted) != len(truth):
            raise tpo.TPOError(f"{len(predicted)} masks were predicted for {len(truth)} frames; expected as many")
        frames = [(as_mask(guess), as_mask(true)) for guess, true in zip(predicted, truth, strict=True)]
        for guess, true in frames:
            self._iou.add(guess, true)
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
