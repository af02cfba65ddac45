"""Which query answers for which moment. Suffixes: N samples, Q queries, M moments of a sample at the most."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tpo_head_temporal.positions import to_start_end


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of (start, end) pairs [..., 2], -1 to 1."""
    low, high = torch.maximum(a[..., 0], b[..., 0]), torch.minimum(a[..., 1], b[..., 1])
    overlap = (high - low).clamp(min=0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - overlap
    hull = torch.maximum(a[..., 1], b[..., 1]) - torch.minimum(a[..., 0], b[..., 0])
    return overlap / union - (hull - union) / hull


@torch.no_grad()
def match(
    logits: Tensor, spans_cw: Tensor, true_cw: Tensor, true_mask: Tensor, *, span: float, giou_: float, label: float
) -> Tensor:
    """The query of each moment, int64 [..., M], for which the summed cost is least (Hungarian algorithm).

    `logits`, `spans_cw` [..., Q, 2]; `true_cw` [..., M, 2] with `true_mask` [..., M], M at most Q. Cost of a pair:
    span * L1 - giou_ * GIoU - label * foreground probability. Padded moments get some of the queries left over.
    """
    foreground = logits.softmax(-1)[..., :1]
    distance = (spans_cw[..., :, None, :] - true_cw[..., None, :, :]).abs().sum(-1)
    overlap = giou(to_start_end(spans_cw)[..., :, None, :], to_start_end(true_cw)[..., None, :, :])
    cost = span * distance - giou_ * overlap - label * foreground
    # A column of equal costs takes no query that another column wants.
    cost = torch.where(true_mask.bool()[..., None, :], cost, 0.0)
    blocks = cost.flatten(0, -3).transpose(-1, -2).double().cpu().numpy()  # [all samples, M, Q], in one transfer
    found = [linear_sum_assignment(block)[1] for block in blocks]
    columns = np.stack(found) if found else np.zeros((0, true_mask.shape[-1]), dtype=np.int64)
    return torch.from_numpy(columns).to(logits.device).view(true_mask.shape)
