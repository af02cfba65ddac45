"""What keeps conversation as it was: the divergence of a model's answers from those of its host without LoRA.

Training through heads moves the language model, and so what it says of anything else. The loss "retain" holds it: for
each labelled position of a batch row without a token of a head, the divergence KL(host || model) of the next token's
distribution, over the vocabulary without triggers (`losses.retain_loss`). The host runs once more for it, without LoRA,
without a gradient, and with its output embedding at those positions alone.

Suffixes: R rows kept, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.extras import needed
from tpo_plugin.positions import retained_labels
from tpo_plugin.step import Step
from tpo_plugin.supervised import Retained, SupervisedRows

_OF_LABELS = ("labels", "shift_labels", "num_items_in_batch")


class HostAlone(Step):
    """A forward of the host as it is without TPO; it keeps the logits of some rows."""

    def __init__(self, of: Step, rows: SupervisedRows) -> None:
        super().__init__(of.tasks, of.host)
        self.idle_media = of.idle_media
        self._wanted = rows
        self.logits_RV: Tensor | None = None
        """Once the output embedding ran."""

    def embedded(self, ids: Tensor, embeds: Tensor) -> None:
        """Puts nothing in."""

    def hidden(self, states: Tensor) -> None:
        """Keeps nothing."""

    def entering_head(self, states: Tensor) -> Tensor:
        """The rows wanted. Raises `HostError` for a host whose states do not stand where its labels do."""
        if states.dim() != 3 or tuple(states.shape[:2]) != self._wanted.shape:
            raise HostError(
                f"the loss 'retain' finds the host's states in the shape {list(states.shape)} and the labels in "
                f"{list(self._wanted.shape)}, so it cannot be had of this host; leave it out of loss_weights"
            )
        return self._wanted.narrowed(states)

    def logits(self, inputs: Tensor, logits: Tensor) -> None:
        """Keeps them."""
        self.logits_RV = logits[0, : len(self._wanted.index_K)]


def run_host_alone(
    model: nn.Module,
    step: Step,
    forward: Callable[..., Any],
    kwargs: dict[str, Any],
    running: Callable[[Step], AbstractContextManager[None]],
) -> None:
    """Has `step` know what the host alone says, where it wants that. `forward` is the host's.

    Raises `TPOError` for a model without LoRA, and `HostError` for a host of which it cannot be had.
    """
    if step.labels is None or not _wanted(step):
        return
    if step.positions is None or step.host.decodes:
        raise HostError(
            "the loss 'retain' finds conversation by its input_ids, which a forward without them, and an "
            "encoder-decoder, do not have beside their labels; leave 'retain' out of loss_weights"
        )
    rows = SupervisedRows.of(retained_labels(step.labels.whole, step.positions), step.host.label_shift)
    alone = HostAlone(step, rows)
    with torch.no_grad(), _without_dropout(model), without_adapters(model), running(alone):
        forward(**{name: value for name, value in kwargs.items() if name not in _OF_LABELS})
    if alone.logits_RV is None:
        raise HostError(
            "the loss 'retain' needs the host's output embedding to run, and it did not (a fused loss); switch the "
            "fused loss off, or leave 'retain' out of loss_weights"
        )
    step.labels.retained = Retained(rows, alone.logits_RV)


def _wanted(step: Step) -> bool:
    """Whether the loss is to be computed: only in training, and where conversation is learned."""
    return step.learns and step.wants("mllm") and step.tasks.config.weight("retain") != 0


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """The host as it answers, which is what is to be retained."""
    of_tpo = set(model.tpo.modules())
    training = [module for module in model.modules() if module.training and module not in of_tpo]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The host without LoRA; what trains stays as it is. Raises `TPOError` for a model without an adapter of PEFT."""
    with needed():
        from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not layers:
        raise TPOError(
            "the loss 'retain' compares with the host without LoRA, and the model has no LoRA; leave 'retain' out of "
            "loss_weights (a host of which nothing trains keeps its conversation without it)"
        )
    switched_on = [layer for layer in layers if not layer.disable_adapters]
    trains = {parameter: parameter.requires_grad for layer in layers for parameter in layer.parameters()}
    try:
        for layer in switched_on:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in switched_on:
            layer.enable_adapters(True)
        for parameter, flag in trains.items():
            parameter.requires_grad_(flag)
