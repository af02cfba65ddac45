"""Overlapping predictions. Suffix K: spans of one answer."""

from __future__ import annotations

import torch
from torch import Tensor


def suppress(spans_s: Tensor, scores: Tensor, threshold: float | None) -> Tensor:
    """Indices of the spans to keep, the best first, int64: greedy non-maximum suppression.

    A span [K, 2] is dropped where its overlap with a kept one of higher score is above `threshold`, as the public code
    measures it: intersection / hull, 0 for an empty hull. None keeps all.
    """
    order = scores.argsort(descending=True, stable=True)
    if threshold is None:
        return order
    starts, ends = spans_s[order].double().cpu().unbind(-1)
    overlap = (torch.minimum(ends[:, None], ends) - torch.maximum(starts[:, None], starts)).clamp(min=0)
    hull = torch.maximum(ends[:, None], ends) - torch.minimum(starts[:, None], starts)
    above = torch.where(hull > 0, overlap / hull, 0.0) > threshold
    kept: list[int] = []
    for i in range(len(order)):
        if not above[i, kept].any():
            kept.append(i)
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]
