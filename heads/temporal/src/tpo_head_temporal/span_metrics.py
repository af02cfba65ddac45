"""How well predicted time spans fit the true ones. numpy only; spans are [start, end] in seconds.

Q queries, P predicted spans of a query, G true spans of a query, R thresholds. Ragged lists are padded, with a mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RECALL_AT = (0.3, 0.5, 0.7)
"""IoU thresholds of the recall that papers report."""


def span_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection / union of spans [..., 2], broadcast; 0 where the union is empty. An inverted span has no length."""
    overlap = _overlap(first, second)
    union = _length(first) + _length(second) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def best_iou(spans: np.ndarray, true_spans: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """IoU [Q] of each span [Q, 2] with the true span [Q, G, 2] that it fits best; `mask` [Q, G] marks true spans.

    The value is intersection / hull, as the QVHighlights evaluator has it: the IoU where the two spans overlap, and 0
    where they do not.
    """
    fit = np.where(mask, span_iou(spans[:, None], true_spans), -1.0)
    true = true_spans[np.arange(len(spans)), fit.argmax(1)]
    overlap = _overlap(spans, true)
    hull = np.maximum(spans[:, 1], true[:, 1]) - np.minimum(spans[:, 0], true[:, 0])
    return np.divide(overlap, hull, out=np.zeros_like(overlap), where=hull > 0)


def average_precision(
    spans: np.ndarray,
    scores: np.ndarray,
    true_spans: np.ndarray,
    mask: np.ndarray,
    thresholds: Sequence[float],
) -> np.ndarray:
    """Average precision [Q, R] of spans [Q, P, 2] with scores [Q, P] (-inf: padding) against true spans [Q, G, 2].

    By descending score, ties in their order, each span takes the free true span that it overlaps most, among those of
    at least the threshold; without one it is a false positive. The area is that under the precision envelope over all
    recalls (all-points interpolation, Pascal VOC 2010).
    """
    num_queries, num_spans = scores.shape
    order = np.argsort(-scores, axis=1, kind="stable")
    spans = np.take_along_axis(spans, order[..., None], 1)
    padding = np.take_along_axis(scores, order, 1) == -np.inf
    overlaps = np.where(mask[:, None], span_iou(spans[:, :, None], true_spans[:, None]), -1.0)  # [Q, P, G]
    overlaps = np.where(padding[..., None], -1.0, overlaps)[..., ::-1]  # of equal overlaps the last true span is taken
    at = np.asarray(thresholds)[:, None]
    free = np.ones((num_queries, len(at), overlaps.shape[-1]), dtype=bool)
    hits = np.zeros((num_queries, len(at), num_spans), dtype=bool)
    for rank in range(num_spans):
        overlap = overlaps[:, rank, None]
        candidates = np.where(free & (overlap >= at), overlap, -1.0)  # [Q, R, G]
        taken = candidates.argmax(-1)[..., None]
        hit = np.take_along_axis(candidates, taken, -1) >= 0
        np.put_along_axis(free, taken, np.take_along_axis(free, taken, -1) & ~hit, -1)
        hits[:, :, rank] = hit[..., 0]
    true_positives = hits.cumsum(-1)
    precision = true_positives / np.maximum((~padding).cumsum(-1), 1)[:, None]
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    recall = true_positives / mask.sum(1)[:, None, None]
    return (np.diff(recall, axis=-1, prepend=0) * envelope).sum(-1)


def recall_at_one(ious: np.ndarray) -> dict[str, float]:
    """`R1@0.3`, `R1@0.5`, `R1@0.7` and `mIoU`, each in 0 to 1, of the IoUs [Q] of each query's best predicted span."""
    return {f"R1@{at}": float((ious >= at).mean()) for at in RECALL_AT} | {"mIoU": float(ious.mean())}


def pad(rows: Sequence[Sequence[Sequence[float]] | np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists of `width` numbers each, as float64 [Q, G, width], zeros behind the end, and the mask [Q, G] of what is."""
    counts = np.array([len(row) for row in rows], dtype=int)
    mask = np.arange(counts.max(initial=0)) < counts[:, None]
    padded = np.zeros((*mask.shape, width))
    padded[mask] = np.array([item for row in rows for item in row], dtype=float).reshape(-1, width)
    return padded, mask


def _length(spans: np.ndarray) -> np.ndarray:
    return np.maximum(spans[..., 1] - spans[..., 0], 0)


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    end = np.minimum(first[..., 1], second[..., 1])
    return np.maximum(end - np.maximum(first[..., 0], second[..., 0]), 0)
