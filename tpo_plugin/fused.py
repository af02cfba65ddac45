"""A forward of TRL's, which makes log-probabilities of the output embedding's weights and never calls it.

`model(..., labels=labels, fused_lm_head=True)` (trl/trainer/utils.py, `add_fused_lm_head`, which TRL puts in the place
of `model.forward`) runs the host without its output embedding, and multiplies the last hidden state with
`get_output_embeddings().weight` in tiles. During it that gives the weights with the triggers' trained part, and task
tokens, which are put behind their triggers and never chosen, have no label: their log-probability is 0.

Suffixes: B batch, T sequence, V vocabulary, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpo_plugin import sharding
from tpo_plugin.errors import HostError
from tpo_plugin.positions import IGNORE_INDEX
from tpo_plugin.tasks import Tasks

_ASKED = "fused_lm_head"
_GIVES = "get_output_embeddings"
_NO_LOGIT = -1e4
"""Of a row that no token owns: its probability is 0, and the logit is finite in half precision and when divided."""


@dataclass(frozen=True)
class OutputWeights:
    """What TRL reads of an output embedding."""

    weight: Tensor
    """[V, D]"""
    bias: Tensor | None
    """[V]"""


def output_weights(head: Any, tasks: Tasks) -> OutputWeights:
    """The weights with which a Linear computes the logits that the host has with TPO, up to rounding.

    Raises `HostError` under ZeRO-3, where a rank has a part of them.
    """
    if sharding.split([head.weight]):
        raise HostError(
            "a trainer of TRL computes log-probabilities of the output embedding's weights, of which ZeRO-3 leaves a "
            "part to each rank, so the triggers' trained part cannot be added; use ZeRO-2 or DDP"
        )
    weight, bias, logits = head.weight, head.bias, tasks.trigger_logits
    weight = weight.index_add(0, logits.triggers.to(weight.device), tasks.output_rows().to(weight))
    if len(logits.unused):
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        bias = bias.index_fill(0, logits.unused.to(bias.device), _NO_LOGIT)
    return OutputWeights(weight, bias)


class FusedForward:
    """The hooks on a host before and after such a forward."""

    def __init__(self, model: nn.Module, tasks: Tasks) -> None:
        self.model, self.tasks = model, tasks

    def attach(self) -> list[Any]:
        """Hooks the host; returns the handles."""
        return [
            self.model.register_forward_pre_hook(self._before, with_kwargs=True),
            self.model.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]

    @torch.compiler.disable
    def _before(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not kwargs.get(_ASKED):
            return None
        weights = output_weights(getattr(model, _GIVES)(), self.tasks)
        vars(model)[_GIVES] = lambda: weights
        task_ids = torch.tensor([tokens.task_id for tokens in self.tasks.tokens.values()])
        given = {name: kwargs[name] for name in ("labels", "shift_labels") if kwargs.get(name) is not None}
        masked = {n: v.masked_fill(torch.isin(v, task_ids.to(v.device)), IGNORE_INDEX) for n, v in given.items()}
        return args, kwargs | masked

    @torch.compiler.disable
    def _after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if kwargs.get(_ASKED):
            vars(model).pop(_GIVES, None)
