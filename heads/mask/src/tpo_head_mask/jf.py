"""J, F and J&F of video object segmentation, as SA-V's evaluator defines them; of DAVIS's it differs by `RULE`. numpy
only.

J is the overlap of two masks, F how well their boundaries agree (Perazzi et al., CVPR 2016). H height, W width in
pixels. Frames are read one after another, so that iterators need not hold a video in memory.

    scores = JFScores()
    scores.add_objects("dog", truth={"000": masks}, predicted={"000": masks})   # a mask for each object and frame
    scores.add_labels("cats", truth=label_maps, predicted=label_maps)           # a map of object ids for each frame
    scores.mean()["J&F"], scores.objects["dog", "000"].jf, scores.skipped
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from math import ceil, isqrt, sqrt
from typing import Any

import numpy as np

import tpo_plugin as tpo

RULE = "SA-V's rule: frames before an object appears do not count; davis2017-evaluation counts them."
"""Which frames of an object are scored, in both layouts."""
_MISSING = object()


def frame_scores(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """J and F of one frame, 0 to 1; masks are bool [H, W]. Two empty masks agree: both are 1."""
    if predicted.shape != truth.shape:
        raise tpo.TPOError(f"the predicted mask is of shape {predicted.shape}, the true one of {truth.shape}")
    height, width = truth.shape
    union = predicted | truth
    rows = np.flatnonzero(union.any(axis=1))
    if not len(rows):
        return 1.0, 1.0
    columns = np.flatnonzero(union[rows[0] : rows[-1] + 1].any(axis=0))
    # Outside of this window, which has a background pixel all around unless the image ends, nothing is to be counted.
    window = (
        slice(max(0, rows[0] - 1), min(height, rows[-1] + 2)),
        slice(max(0, columns[0] - 1), min(width, columns[-1] + 2)),
    )
    predicted, truth = predicted[window], truth[window]
    j = np.count_nonzero(predicted & truth) / np.count_nonzero(union[window])
    radius = ceil(0.008 * sqrt(height**2 + width**2))
    return float(j), float(_boundary_score(_boundary(predicted), _boundary(truth), radius))


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their right, lower or lower right neighbour; nothing lies beyond the border."""
    edge = np.zeros_like(mask)
    below, right = mask[1:] ^ mask[:-1], mask[:, 1:] ^ mask[:, :-1]
    edge[:-1] = below
    edge[:, :-1] |= right
    edge[:-1, :-1] |= mask[1:, 1:] ^ mask[:-1, :-1]
    edge[-1, -1:] = False
    return edge


def _boundary_score(predicted: np.ndarray, truth: np.ndarray, radius: int) -> float:
    num_predicted, num_true = np.count_nonzero(predicted), np.count_nonzero(truth)
    if not num_predicted or not num_true:
        return float(num_predicted == num_true)
    precision = np.count_nonzero(predicted & _dilated(truth, radius)) / num_predicted
    recall = np.count_nonzero(truth & _dilated(predicted, radius)) / num_true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _dilated(edge: np.ndarray, radius: int) -> np.ndarray:
    """Pixels within `radius` of one that is set. A disk is a stack of rows, wider the nearer they are to its centre."""
    height, width = edge.shape
    padded = np.zeros((height + 2 * radius, width + 2 * radius), dtype=bool)
    padded[radius:-radius, radius:-radius] = edge
    row = padded[:, radius:-radius].copy()  # `edge` widened by `half` pixels to either side
    out = np.zeros_like(edge)
    half = 0
    for dy in range(radius, -1, -1):
        while half < isqrt(radius**2 - dy**2):
            half += 1
            row |= padded[:, radius - half : radius - half + width]
            row |= padded[:, radius + half : radius + half + width]
        out |= row[radius - dy : radius - dy + height]
        out |= row[radius + dy : radius + dy + height]
    return out


@dataclass
class ObjectScores:
    """Scores of one object over its counted frames, each 0 to 1."""

    j_frames: list[float] = field(default_factory=list)
    f_frames: list[float] = field(default_factory=list)
    first_frame: int = 0
    """Index, among the frames that are scored, of the first one that counts."""

    @property
    def j(self) -> float:
        """Mean over the counted frames, 0 to 100."""
        return 100 * sum(self.j_frames) / len(self.j_frames)

    @property
    def f(self) -> float:
        """Mean over the counted frames, 0 to 100."""
        return 100 * sum(self.f_frames) / len(self.f_frames)

    @property
    def jf(self) -> float:
        """The mean of both, 0 to 100."""
        return (self.j + self.f) / 2

    def add(self, frame: int, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Adds a frame, from the first in which the object appears, in the truth or in the prediction."""
        if not self.j_frames:
            self.first_frame = frame
        j, f = frame_scores(predicted, truth)
        self.j_frames.append(j)
        self.f_frames.append(f)


class JFScores:
    """Gathers sequences. With `skip_ends` the first and the last frame of each are not scored, as is the convention
    where the first mask is given.

    A frame counts for an object from the first scored one in which it appears, in the truth or in the prediction.
    """

    def __init__(self, *, skip_ends: bool = True) -> None:
        self.skip_ends = skip_ends
        self.objects: dict[tuple[str, str], ObjectScores] = {}
        """Scores by sequence and object."""
        self.skipped: dict[tuple[str, str], str] = {}
        """Objects that cannot be scored and are in no mean, with the reason."""

    def mean(self) -> dict[str, float]:
        """Plain means over all objects of all sequences, "J", "F" and "J&F", 0 to 100; empty where there are none."""
        if not self.objects:
            return {}
        scores = self.objects.values()
        j, f = (sum(values) / len(scores) for values in ([s.j for s in scores], [s.f for s in scores]))
        return {"J&F": (j + f) / 2, "J": j, "F": f}

    def add_objects(
        self, sequence: str, truth: Mapping[str, Iterable[Any]], predicted: Mapping[str, Iterable[Any]]
    ) -> None:
        """Adds a sequence with a mask [H, W] for each object and frame (above 0 is foreground); masks may overlap.

        Predicted objects and frames that the truth does not have are ignored. Raises `TPOError` where the prediction
        lacks an object or a frame, or a mask has another size or more than two values.
        """
        for name, masks in truth.items():
            if name not in predicted:
                raise tpo.TPOError(f"{sequence}: the prediction has no object {name!r}; it has {sorted(predicted)}")
            where = f"{sequence}, object {name}"
            scores, appeared, in_truth = ObjectScores(), False, False
            for index, guess, true in self._pairs(where, masks, predicted[name]):
                guess, true = _binary(guess, where, index), _binary(true, where, index)
                in_truth |= bool(true.any())
                appeared = appeared or in_truth or bool(guess.any())
                if appeared:
                    scores.add(index, guess, true)
            if in_truth:
                self._put(sequence, name, scores)
            else:
                self.skipped[sequence, name] = "the truth has no mask of it in the scored frames"

    def add_labels(self, sequence: str, truth: Iterable[Any], predicted: Iterable[Any]) -> None:
        """Adds a sequence with a map of object ids [H, W] for each frame; 0 is background.

        Ids that the truth of the scored frames does not have are ignored. Raises `TPOError` where the prediction lacks
        a frame or has another size.
        """
        found: dict[int, ObjectScores] = {}
        in_truth: set[int] = set()
        for index, guess, true in self._pairs(sequence, truth, predicted):
            guess, true = np.asarray(guess), np.asarray(true)
            ids = object_ids(true)
            in_truth.update(ids)
            for name in (*ids, *object_ids(guess)):
                found.setdefault(name, ObjectScores())
            for name, scores in found.items():
                scores.add(index, guess == name, true == name)
        for name in sorted(in_truth):
            self._put(sequence, str(name), found[name])

    def _put(self, sequence: str, name: str, scores: ObjectScores) -> None:
        if (sequence, name) in self.objects:
            raise tpo.TPOError(f"{sequence}, object {name}: was added before; expected each object once")
        self.objects[sequence, name] = scores

    def _pairs(self, where: str, truth: Iterable[Any], predicted: Iterable[Any]) -> Iterator[tuple[int, Any, Any]]:
        """Index among the scored frames, predicted and true frame."""
        pairs = enumerate(_both(where, truth, predicted))
        for index, (guess, true) in _without_ends(pairs) if self.skip_ends else pairs:
            if np.shape(guess) != np.shape(true):
                raise tpo.TPOError(
                    f"{where}, frame {index}: the prediction is of shape {list(np.shape(guess))}, "
                    f"the truth of {list(np.shape(true))}; expected the same size"
                )
            yield index - self.skip_ends, guess, true


def _both(where: str, truth: Iterable[Any], predicted: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    guesses = iter(predicted)
    for index, true in enumerate(truth):
        guess = next(guesses, _MISSING)
        if guess is _MISSING:
            raise tpo.TPOError(f"{where}: the prediction ends before frame {index} of the truth; expected every frame")
        yield guess, true


def _without_ends(items: Iterable[Any]) -> Iterator[Any]:
    held = _MISSING
    for item in islice(items, 1, None):
        if held is not _MISSING:
            yield held
        held = item


def _binary(mask: Any, where: str, index: int) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype == bool:
        return mask
    foreground = mask > 0
    values = mask[foreground]
    if values.size and (values != values[0]).any():
        found = sorted(set(mask.ravel().tolist()))[:6]
        raise tpo.TPOError(f"{where}, frame {index}: a mask has the values {found}…; expected at most two")
    return foreground


def object_ids(labels: np.ndarray) -> list[int]:
    """The ids in a label map, ascending, without the background's 0."""
    if labels.dtype == np.uint8:  # much faster than sorting
        return (np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[1:]) + 1).tolist()
    found = {value for row in labels for value in np.unique(row).tolist()}  # by rows: it copies what it sorts
    return sorted(found - {0})
