"""What evaluation reports of the temporal head."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

import tpo_plugin as tpo
from tpo_head_temporal.span_metrics import best_iou, pad, recall_at_one


class TemporalMetrics(tpo.HeadMetrics):
    """`R1@0.3`, `R1@0.5`, `R1@0.7`: the share of queries whose best-scored span has at least that IoU with a true one.

    `mIoU` is the mean of that IoU. Each in 0 to 1; of several true spans the one that fits best counts. A missed query
    has an IoU of 0.
    """

    def __init__(self, head: tpo.TaskHead) -> None:
        super().__init__(head)
        self.ious: list[np.ndarray] = []
        self.truth: list[np.ndarray] = []
        """The true spans of each query, [M, 2]."""

    def update(self, outputs: dict[str, Tensor], targets: dict[str, Any]) -> None:
        """`outputs["spans_s"]` [N, Q, 2], the best first; `targets["spans_s"]` N lists or tensors [M_n, 2]."""
        spans_s = [_array(spans) for spans in targets["spans_s"]]
        true, mask = pad(spans_s, 2)
        self.truth += spans_s
        if len(true):
            self.ious.append(best_iou(_array(outputs["spans_s"])[:, 0], true, mask))

    def missed(self, targets: dict[str, Any]) -> bool:
        self.ious.append(np.zeros(len(targets["spans_s"])))
        self.truth += [_array(spans) for spans in targets["spans_s"]]
        return True

    def quality(self) -> float | None:
        return self.compute().get("mIoU")

    def compute(self) -> dict[str, float]:
        return recall_at_one(np.concatenate(self.ious)) if self.ious else {}

    def constant(self) -> dict[str, float]:
        """Of the true spans, at most 256 of them tried, the one with the greatest mean IoU with all, in seconds."""
        if not self.truth:
            return {}
        true, mask = pad(self.truth, 2)
        every = true[mask]
        tried = every[:: max(1, -(-len(every) // 256))]
        ious = [best_iou(np.broadcast_to(span, (len(true), 2)), true, mask) for span in tried]
        return recall_at_one(max(ious, key=np.mean)) if ious else {}


def _array(spans: Any) -> np.ndarray:
    return np.asarray(spans.detach().float().cpu() if isinstance(spans, Tensor) else spans, dtype=float)
