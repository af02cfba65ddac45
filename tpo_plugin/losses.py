"""Splitting and normalising the loss: L = w_mllm L_mllm + w_assign L_assign + sum_i w_i L_i (arXiv 2412.19326).

Each loss is a sum over targets divided by the number of targets of its kind; under `wrap_trainer` that number is of the
whole accumulated global batch, otherwise of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tpo_plugin.tokens import HeadTokens, Positions, token_positions

IGNORE_INDEX = -100


def split_labels(labels: Tensor, tokens: Mapping[str, HeadTokens]) -> Tensor:
    """The host's labels: a copy of `labels` [B, T] with the trigger positions ignored."""
    triggers = torch.tensor([t.trigger_id for t in tokens.values()]).to(labels.device, non_blocking=True)
    return labels.masked_fill(torch.isin(labels, triggers), IGNORE_INDEX)


def count_targets(
    input_ids: Tensor, labels: Tensor | None, tokens: Mapping[str, HeadTokens], positions: Positions | None = None
) -> dict[str, int]:
    """Number of targets of each kind in a micro-batch: "mllm", "assign", and every head's name.

    "mllm" counts the labels that the host scores after its shift: columns 1 and on, neither ignored nor triggers.
    `positions` are what `token_positions` finds in the batch, where the collator gave them.
    """
    found = positions or token_positions(input_ids, labels, tokens)
    ordinary = 0 if labels is None else int((split_labels(labels, tokens)[:, 1:] != IGNORE_INDEX).sum())
    heads = {head: len(places) for head, places in found["task"].items()}
    return {"mllm": ordinary, "assign": len(found["labels"])} | heads


@dataclass
class TPOOutput:
    """What one forward with TPO gave; `out.tpo`, and the same object as `model.tpo.last_output`."""

    loss: Tensor | None = None
    """The weighted sum of all losses, float32; None without labels and targets."""
    host_loss: Tensor | None = None
    """Its part that is the host's own loss: weighted "mllm"."""
    plugin_loss: Tensor | None = None
    """Its part without the host's own: assignment and heads."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Unweighted losses by name: "mllm", "assign", and heads; each with gradient."""
    details: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """The named terms `loss_*` of each head's loss, detached."""
    outputs: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """What each head's forward gave, with gradient."""
    statistics: dict[str, Tensor] = field(default_factory=dict)
    """Scalar counts on the device: "assign_correct", "assign_total", and where measured "false_triggers", "ordinary"."""
    _heads: Any = None

    @property
    def predictions(self) -> dict[str, Any]:
        """Each head's values, in the order in which its task tokens stand in the batch; without gradient."""
        with torch.no_grad():
            return {
                name: self._heads[name].postprocess({k: v.detach() for k, v in outputs.items()})
                for name, outputs in self.outputs.items()
            }


def assignment_loss(logits_NV: Tensor, labels_N: Tensor, num_targets: Tensor | int) -> Tensor:
    """Cross entropy over the whole vocabulary at the trigger positions, summed, divided by `num_targets`; float32."""
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="sum") / num_targets


def false_triggers(logits_BTV: Tensor, labels_BT: Tensor, tokens: Mapping[str, HeadTokens]) -> dict[str, Tensor]:
    """How often a trigger is the likeliest token where the label is an ordinary one; counts on the device."""
    triggers = torch.tensor([t.trigger_id for t in tokens.values()]).to(labels_BT.device, non_blocking=True)
    target = labels_BT[:, 1:]
    ordinary = (target != IGNORE_INDEX) & ~torch.isin(target, triggers)
    emitted = torch.isin(logits_BTV[:, :-1].argmax(-1), triggers)
    return {"false_triggers": (emitted & ordinary).sum(), "ordinary": ordinary.sum()}
