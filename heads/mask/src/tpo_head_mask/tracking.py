"""Success, precision and normalised precision of tracking one object by boxes, as LaSOT and GOT-10k score them.

Boxes are [T, 4] x1, y1, x2, y2 in pixels, T frames; a frame where the object is absent is a row of NaN, and so is one
where nothing was predicted. All scores are 0 to 100.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import tpo_plugin as tpo

SUCCESS_STEPS = {"lasot": 21, "got10k": 101}
"""Thresholds of the success curve, evenly from 0 to 1."""
PRECISION_PX, NORMALISED_PRECISION = 20, 0.2
"""The thresholds that the two precisions are read at: pixels, and shares of the true box's width and height."""


def box_iou(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """Overlap of each pair, 0 to 1; 0 where a box is missing, inverted or without area."""
    a_xyxy, b_xyxy = np.nan_to_num(a_xyxy), np.nan_to_num(b_xyxy)
    low, high = np.maximum(a_xyxy[..., :2], b_xyxy[..., :2]), np.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    areas = [np.clip(box[..., 2:] - box[..., :2], 0, None).prod(-1) for box in (a_xyxy, b_xyxy)]
    common = np.clip(high - low, 0, None).prod(-1)
    union = areas[0] + areas[1] - common
    return np.divide(common, union, out=np.zeros_like(union), where=union > 0)


class TrackingScores:
    """Gathers sequences under one of two conventions.

    "lasot" (Fan et al., CVPR 2019): every frame counts, the first, which is given, as a hit; in a frame where the
    object is absent nothing is right, and where nothing was predicted the box of the frame before holds. "success" is
    the area under the success curve, the share of frames whose overlap is above a threshold, over 21 thresholds;
    "precision" the share whose centre is off by at most 20 pixels; "normalised_precision" by at most 0.2 after both
    axes are divided by the true box's width and height. Each is a mean over sequences.

    "got10k" (Huang et al., TPAMI 2021): the first frame and those where the object is absent do not count, boxes are
    put into the image. "ao" is the mean overlap, "sr50" and "sr75" the share above 0.5 and 0.75, "success" the area
    under the curve over 101 thresholds. Each is a mean over all counted frames of all sequences.
    """

    def __init__(self, convention: str = "lasot") -> None:
        if convention not in SUCCESS_STEPS:
            raise tpo.TPOError(f"convention is {convention!r}; expected one of {', '.join(map(repr, SUCCESS_STEPS))}")
        self.convention = convention
        self.sequences: dict[str, dict[str, float]] = {}
        """Scores of each sequence."""
        self._lengths: list[int] = []

    def add(self, sequence: str, predicted: Any, truth: Any, *, size: tuple[int, int] | None = None) -> None:
        """Adds a sequence; `size` is (height, width) of its frames, which "got10k" needs.

        Raises `TPOError` for other shapes, a true box that is inverted, or a sequence without a frame to score.
        """
        predicted, truth = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
        if predicted.shape != truth.shape or truth.ndim != 2 or truth.shape[1] != 4:
            raise tpo.TPOError(
                f"{sequence}: predicted boxes are of shape {list(predicted.shape)}, true ones of {list(truth.shape)}; "
                "expected both [frames, 4]"
            )
        if sequence in self.sequences:
            raise tpo.TPOError(f"{sequence}: was added before; expected each sequence once")
        present = ~np.isnan(truth).any(axis=1)
        for index in np.flatnonzero(present).tolist():
            if (truth[index, 2:] <= truth[index, :2]).any():
                raise tpo.TPOError(f"{sequence}, frame {index}: the true box {truth[index].tolist()} has no area")
        score = self._lasot if self.convention == "lasot" else self._got10k
        self.sequences[sequence] = score(sequence, predicted, truth, present, size)

    def mean(self) -> dict[str, float]:
        """Scores over all sequences; empty where there are none."""
        weights = self._lengths if self.convention == "got10k" else [1] * len(self.sequences)
        rows = list(self.sequences.values())
        return {name: float(np.average([row[name] for row in rows], weights=weights)) for name in (rows[:1] or [{}])[0]}

    def _lasot(
        self, sequence: str, predicted: np.ndarray, truth: np.ndarray, present: np.ndarray, size: Any
    ) -> dict[str, float]:
        if not len(truth) or not present[0]:
            raise tpo.TPOError(f"{sequence}: the object is not in the first frame, whose box is given")
        predicted = np.concatenate([truth[:1], predicted[1:]])
        valid = (predicted[:, 2:] > predicted[:, :2]).all(axis=1)
        predicted = predicted[np.maximum.accumulate(np.where(valid, np.arange(len(predicted)), 0))]
        overlap = np.where(present, box_iou(predicted, truth), -1.0)
        offset = (predicted[:, :2] + predicted[:, 2:] - truth[:, :2] - truth[:, 2:]) / 2
        offset_px = np.linalg.norm(offset, axis=1)
        normalised = np.linalg.norm(offset / (truth[:, 2:] - truth[:, :2]), axis=1)  # NaN is below no threshold
        return {
            "success": _success(overlap, SUCCESS_STEPS["lasot"]),
            "precision": 100 * float((offset_px <= PRECISION_PX).mean()),
            "normalised_precision": 100 * float((normalised <= NORMALISED_PRECISION).mean()),
        }

    def _got10k(
        self, sequence: str, predicted: np.ndarray, truth: np.ndarray, present: np.ndarray, size: Any
    ) -> dict[str, float]:
        if size is None:
            raise tpo.TPOError(f"{sequence}: size (height, width) is missing, which 'got10k' clips boxes to")
        counted = present & (np.arange(len(truth)) > 0)
        if not counted.any():
            raise tpo.TPOError(f"{sequence}: the object is in no frame after the first, so there is nothing to score")
        overlap = box_iou(_inside(predicted[counted], size), _inside(truth[counted], size))
        self._lengths.append(int(counted.sum()))
        return {
            "ao": 100 * float(overlap.mean()),
            "sr50": 100 * float((overlap > 0.5).mean()),
            "sr75": 100 * float((overlap > 0.75).mean()),
            "success": _success(overlap, SUCCESS_STEPS["got10k"]),
        }


def _inside(boxes_xyxy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes in an image of (height, width), as GOT-10k's toolkit does it: first the corner, then what the size may be.

    A box that begins left of the image is so moved into it, not cut.
    """
    limits = np.array([size[1], size[0]])
    corner = np.clip(boxes_xyxy[:, :2], 0, limits)
    extent = np.clip(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 0, limits - corner)
    return np.concatenate([corner, corner + extent], axis=1)


def _success(overlap: np.ndarray, steps: int) -> float:
    """Area under the curve of the share of frames above each threshold, 0 to 100."""
    thresholds = np.arange(steps) / (steps - 1)
    return 100 * float((overlap[:, None] > thresholds).mean())
