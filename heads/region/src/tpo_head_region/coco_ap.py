"""COCO's average precision and recall of boxes, number for number that of pycocotools (COCOeval, "bbox"). numpy only.

D detections of an image and category, G true boxes, T overlap thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

import tpo_plugin as tpo

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Square pixels, both ends included."""
MOST = (1, 10, 100)
"""Detections of an image and category that count."""


def coco_ap(
    truth: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], images: Iterable[Any] = ()
) -> dict[str, float]:
    """The twelve numbers that pycocotools prints, 0 to 1, by name ("AP", "AP50", …, "AR100", …); -1 of nothing to find.

    Args:
        truth: With "id", "image_id", "category_id", "bbox" ([x, y, width, height], pixels), "area" and "iscrowd". As
            there, one of id 0 is never found.
        found: With "image_id", "category_id", "bbox" and "score".
        images: Further images, in which there is nothing to find.

    Raises `TPOError` for a detection in an image that is not known.
    """
    known = {*images, *(entry["image_id"] for entry in truth)}
    for entry in found:
        if entry["image_id"] not in known:
            raise tpo.TPOError(f"a detection is in image {entry['image_id']!r}, of which there is no truth")
    order = sorted(known, key=lambda image: (str(type(image)), image))
    categories = dict.fromkeys(entry["category_id"] for entry in truth)
    tables = [_of_category(category, truth, found, order) for category in categories]

    def mean(kind: int, area: str = "all", most: int = 100, threshold: int | None = None) -> float:
        rows = [table[area, most][kind] for table in tables if (area, most) in table]
        values = np.array([row if threshold is None else row[threshold] for row in rows])
        return float(values.mean()) if values.size else -1.0

    precision = {"AP": mean(0), "AP50": mean(0, threshold=0), "AP75": mean(0, threshold=5)}
    precision |= {f"AP{area}": mean(0, area) for area in list(AREAS)[1:]}
    recall = {f"AR{most}": mean(1, most=most) for most in MOST}
    return precision | recall | {f"AR{area}": mean(1, area) for area in list(AREAS)[1:]}


_Table = dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]
"""By area and number of detections: precision at each threshold [T], and recall [T]."""


def _of_category(
    category: Any, truth: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], images: Sequence[Any]
) -> _Table:
    true = _by_image(truth, category)
    given = _by_image(found, category)
    tables: _Table = {}
    for area, bounds in AREAS.items():
        seen = [_Image(given.get(image, []), true.get(image, []), bounds) for image in images]
        number = sum(image.num_wanted for image in seen)
        for most in MOST if number else ():
            tables[area, most] = _curve(seen, number, most)
    return tables


def _by_image(entries: Sequence[Mapping[str, Any]], category: Any) -> dict[Any, list[Mapping[str, Any]]]:
    chosen: dict[Any, list[Mapping[str, Any]]] = {}
    for entry in entries:
        if entry["category_id"] == category:
            chosen.setdefault(entry["image_id"], []).append(entry)
    return chosen


class _Image:
    """One image's detections of a category, matched with its true boxes of an area."""

    def __init__(
        self, found: Sequence[Mapping[str, Any]], truth: Sequence[Mapping[str, Any]], bounds: tuple[float, float]
    ) -> None:
        low, high = bounds
        crowd = np.array([bool(entry.get("iscrowd", 0)) for entry in truth], dtype=bool)
        areas = np.array([entry["area"] for entry in truth], dtype=float)
        ignored = crowd | (areas < low) | (areas > high)
        self.num_wanted = int((~ignored).sum())
        order = np.argsort(ignored, kind="stable")
        self.crowd, self.ignored = crowd[order], ignored[order]
        self.counts = np.array([truth[k]["id"] != 0 for k in order], dtype=bool)
        scores = np.array([entry["score"] for entry in found], dtype=float)
        ranks = np.argsort(-scores, kind="stable")[: MOST[-1]]
        self.scores = scores[ranks]
        boxes = np.array([found[k]["bbox"] for k in ranks], dtype=float).reshape(-1, 4)
        true = np.array([truth[k]["bbox"] for k in order], dtype=float).reshape(-1, 4)
        overlaps = _overlaps(boxes, true, self.crowd)
        sizes = boxes[:, 2] * boxes[:, 3]
        outside = (sizes < low) | (sizes > high)
        self.hits = np.zeros((len(THRESHOLDS), len(boxes)), dtype=bool)
        self.left_out = np.zeros_like(self.hits)
        for row, threshold in enumerate(THRESHOLDS):
            taken = np.zeros(len(true), dtype=bool)
            for column in range(len(boxes)):
                match = self._match(overlaps[column], taken, min(threshold, 1 - 1e-10))
                if match is not None:
                    taken[match] = True
                    self.left_out[row, column] = self.ignored[match]
                    self.hits[row, column] = self.counts[match]
            self.left_out[row] |= ~self.hits[row] & outside

    def _match(self, overlaps_G: np.ndarray, taken: np.ndarray, least: float) -> int | None:
        """The true box that a detection takes; of equal overlaps the later one."""
        free = (~taken | self.crowd) & (overlaps_G >= least)
        for among in (free & ~self.ignored, free & self.ignored):
            if among.any():
                chosen = np.flatnonzero(among & (overlaps_G == overlaps_G[among].max()))
                return int(chosen[-1])
        return None


def _overlaps(boxes: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """[D, G]; of a crowd intersection / area of the detection."""
    a, b = boxes[:, None], true[None]
    sides = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = np.prod(np.clip(sides, 0, None), -1)
    own, others = np.prod(a[..., 2:], -1), np.prod(b[..., 2:], -1)
    union = np.where(crowd, own, own + others - both)
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def _curve(images: Sequence[_Image], number: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    scores = np.concatenate([image.scores[:most] for image in images])
    order = np.argsort(-scores, kind="stable")
    hits = np.concatenate([image.hits[:, :most] for image in images], 1)[:, order]
    left_out = np.concatenate([image.left_out[:, :most] for image in images], 1)[:, order]
    right, wrong = (hits & ~left_out).cumsum(1).astype(float), (~hits & ~left_out).cumsum(1).astype(float)
    recall = right / number
    precision = right / (right + wrong + np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.concatenate([best, np.zeros((len(best), 1))], 1)
    at = [np.searchsorted(row, RECALLS, side="left") for row in recall]
    means = np.array([row[places].mean() for row, places in zip(best, at, strict=True)])
    return means, recall[:, -1] if recall.shape[1] else np.zeros(len(THRESHOLDS))
