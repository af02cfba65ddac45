"""Whether a host may be scored at labelled positions alone: tried on a first batch, both ways, before it is trusted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tpo_plugin import sharding
from tpo_plugin.errors import HostError
from tpo_plugin.host.base import decoder_ids
from tpo_plugin.host.splice import SplicingHost
from tpo_plugin.losses import host_loss
from tpo_plugin.step import Step

logger = logging.getLogger(__name__)

Arguments = dict[str, Any]
"""Of a host's forward, by name."""


class SupervisedLogits:
    """Has the output embedding of one host run at labelled positions alone, where its loss is the same both ways."""

    def __init__(self) -> None:
        self._reasons: dict[frozenset[str], str] = {}
        """By the names of a forward's arguments why not, "" where it may."""

    def arguments(
        self,
        model: nn.Module,
        step: Step,
        kwargs: Arguments,
        forward: Callable[..., Any],
        running: Callable[[Step], AbstractContextManager[None]],
    ) -> Arguments:
        """The arguments of a forward with labels: as they are, or with `step` and labels set so that it is narrowed.

        `forward` is the host's; `running` says which step it tells. Raises `HostError` where the configuration says
        that it must be narrowed, and it cannot.
        """
        labels = step.labels
        assert labels is not None
        wanted = step.tasks.config.supervised_logits
        counts = step.given.task_counts
        if wanted is None and counts is not None and not counts.logits:
            wanted = "auto"
        if not wanted or not step.learns or step.host.media_first or kwargs.get("shift_labels") is not None:
            return kwargs
        if not (labels.scored or labels.assigned):  # no loss reads a logit, so there is nothing to compare
            return _narrowed(model, step, kwargs)
        if sharding.split(model.parameters()):  # a rank that tries alone would wait for the others' parts forever
            if wanted is True:
                raise HostError("supervised_logits is true, which ZeRO-3 does not allow; set it to auto or false")
            return kwargs

        def loss_of(narrow: bool) -> Tensor:
            trial = Step(step.tasks, step.host, step.given, labels=labels.whole, positions=step.positions)
            with running(trial):
                return host_loss(forward(**(_narrowed(model, trial, kwargs) if narrow else kwargs)))

        names = frozenset(name for name, value in kwargs.items() if value is not None)
        return _narrowed(model, step, kwargs) if self._serves(wanted, names, loss_of) else kwargs

    def _serves(self, wanted: Literal["auto", True], names: frozenset[str], loss_of: Callable[[bool], Tensor]) -> bool:
        if names not in self._reasons:
            reason = _difference(loss_of)
            if reason is None:
                return False
            self._reasons[names] = reason
            if reason and wanted == "auto":
                logger.warning("supervised_logits: all logits are computed, for %s", reason)
        reason = self._reasons[names]
        if reason and wanted is True:
            raise HostError(f"supervised_logits is true, and {reason}; set it to auto or false")
        return not reason


def _narrowed(model: nn.Module, step: Step, kwargs: Arguments) -> Arguments:
    assert step.labels is not None
    step.labels.narrows = True
    if isinstance(step.host, SplicingHost):
        return kwargs  # it packs the labels when it splices
    return _with_decoder_ids(model, step, kwargs) | {"labels": step.labels.of_host(step.tasks.tokens)}


def without_unwanted_loss(model: nn.Module, step: Step, kwargs: Arguments) -> Arguments:
    """The arguments of the forward, in which the host computes no loss of its own where that is not wanted."""
    if step.labels is None or step.labels.scored:
        return kwargs
    return _with_decoder_ids(model, step, kwargs) | {"labels": None}


def _with_decoder_ids(model: nn.Module, step: Step, kwargs: Arguments) -> Arguments:
    """With the decoder's input, which an encoder-decoder would make of the labels, and not of packed ones."""
    assert step.labels is not None
    if not step.host.decodes or not (kwargs.get(step.host.ids) is kwargs.get("decoder_inputs_embeds") is None):
        return kwargs
    return kwargs | {step.host.ids: decoder_ids(model, step.labels.whole, step.tasks.tokens)}


def _difference(loss_of: Callable[[bool], Tensor]) -> str | None:
    """Why the two losses differ, "" where they do not, None where the batch does not tell."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        whole = loss_of(False)
    if not torch.isfinite(whole):
        return None  # a batch without a label of the host
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            narrow = loss_of(True)
    except Exception as error:
        return f"the host cannot be scored at labelled positions alone ({type(error).__name__}: {error})"
    tolerance = 1e-5 if narrow.dtype == whole.dtype == torch.float32 else 1e-3
    if torch.isclose(narrow.float(), whole.float(), rtol=tolerance, atol=tolerance):
        return ""
    return f"the host's loss at labelled positions alone is {narrow.item():.6g}, and {whole.item():.6g} of all"
