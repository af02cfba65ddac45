"""A trainer that computes its loss by itself: by what it multiplied the model's loss is found, and taken back."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
import transformers
from torch import Tensor

from tpo_plugin.training.refusals import trl_class

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

logger = logging.getLogger(__name__)

SEES_WHOLE_STEP = hasattr(transformers.Trainer, "get_batch_samples")
"""Whether the Trainer fetches all micro-batches of a step before it runs them (transformers >= 4.46)."""


class OwnLossMixin(_Trainer):
    """What a base's own `compute_loss` did to the loss that the model returns."""

    _share_warned = False

    @property
    def _computes_loss(self) -> bool:
        """Whether the base has a `compute_loss` of its own that is called."""
        own = getattr(super().compute_loss, "__func__", None) is not transformers.Trainer.compute_loss
        return own and trl_class(type(self)) is None

    def _share(self, loss: Tensor, own: Tensor) -> Tensor | None:
        """The number by which the model's `own` loss was multiplied on its way into `loss`; None where it is not in it.

        Under DeepSpeed, whose hooks take every pass through the model's output for its backward, by value: one that
        is anything else than the whole is not in it.
        """
        if not loss.requires_grad or not own.requires_grad:
            return None
        if not self.is_deepspeed_enabled:
            return torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True)[0]
        whole = torch.full_like(own.detach(), self._whole_share)
        if self.state.global_step >= 3 or torch.isclose(loss.detach(), whole * own.detach(), rtol=1e-3, equal_nan=True):
            return whole
        return None

    @property
    def _whole_share(self) -> int:
        """What the loss is to be multiplied by when it leaves compute_loss; DDP and accelerate take it back."""
        return self.accelerator.num_processes * (1 if SEES_WHOLE_STEP else self.args.gradient_accumulation_steps)

    def _warn_of_share(self, share: Tensor) -> None:
        """Says once, in the first steps, that the base trainer multiplies the model's loss: a look at the device."""
        if self._share_warned or self.state.global_step >= 3:
            return
        ratio = float(share) / self._whole_share
        if abs(ratio - 1) > 1e-3:
            self._share_warned = True
            logger.warning(
                "%s multiplies the model's loss by a number of its own (%.4g in step %d), by which the losses of TPO "
                "would be weighted wrongly: they are weighted as one global batch, and this is taken back",
                type(self).__name__,
                ratio,
                self.state.global_step + 1,
            )
