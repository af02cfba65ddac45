"""The baseline in the place of CG-DETR: one moment from the task embedding alone, by an MLP as the region head's.

N task tokens, D the host's hidden size, M moments of a task at the most. Not installed: what trains it registers it
meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

import tpo_plugin as tpo
from tpo_plugin.plugins import register_plugin, unregister_plugin
from tpo_shapes.world import CLIP_SECONDS


class MomentMLP(tpo.TaskHead):
    """Two layers with a ReLU between them."""

    def __init__(self, config: tpo.HeadConfig, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = tpo.Linear(hidden_size, hidden_size)
        self.fc2 = tpo.Linear(hidden_size, 2)

    def forward(self, e_ND: Tensor) -> dict[str, Tensor]:
        """`spans_s` [N, 2]: start and end in seconds, in order."""
        centre, width = self.fc2(F.relu(self.fc1(e_ND))).sigmoid().unbind(-1)
        spans = torch.stack((centre - width / 2, centre + width / 2), -1)
        return {"spans_s": CLIP_SECONDS * spans.clamp(0, 1)}

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Any], num_targets: Tensor | int) -> dict[str, Tensor]:
        """Ten times the mean distance of the ends, as shares of the clip, and 1 - IoU: CG-DETR's losses of a span.

        Of several true moments (`targets["spans_s"]`, N tensors [M_n, 2]) the one that costs least counts.
        """
        found = outputs["spans_s"][:, None]
        if not len(found):
            return {"loss_moment": found.sum()}
        true = pad_sequence(targets["spans_s"], batch_first=True).to(found)  # [N, M, 2]
        distance = (found - true).abs().mean(-1) / CLIP_SECONDS
        low, high = torch.maximum(found, true), torch.minimum(found, true)
        shared = (high[..., 1] - low[..., 0]).clamp(min=0)
        union = (found[..., 1] - found[..., 0] + true[..., 1] - true[..., 0] - shared).clamp(min=1e-6)
        cost = 10 * distance + 1 - shared / union
        missing = true[..., 1] <= true[..., 0]
        return {"loss_moment": cost.masked_fill(missing, torch.inf).min(-1).values.sum() / num_targets}

    def collate_targets(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        """`spans_s`, N tensors [M_n, 2]."""
        return {"spans_s": [torch.tensor(task["spans"], dtype=torch.float32) for task in tasks]}

    def postprocess(self, outputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """As the temporal head's: `spans_s` [1, 2] of each."""
        return [{"spans_s": span[None]} for span in outputs["spans_s"]]


class MomentPlugin:
    """Registers the head "moment"."""

    @tpo.hookimpl
    def register_heads(self, register: Any) -> None:
        """The head and its tokens."""
        register("moment", head=MomentMLP, trigger="<moment_begin>", task_token="<moment>")


@contextmanager
def registered(wanted: bool) -> Iterator[None]:
    """Inside, the head is there, where it is wanted."""
    if not wanted:
        yield
        return
    register_plugin(MomentPlugin(), "moment_mlp")
    try:
        yield
    finally:
        unregister_plugin("moment_mlp")
