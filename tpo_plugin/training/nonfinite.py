"""No optimizer step is taken with a loss or a gradient that is NaN or infinite.

A loss that is not finite makes its gradient NaN, on the device and without reading it back. So every engine meets it
in the gradients, which it has added up over micro-batches and ranks. They are looked at once in a step, before they are
clipped, and one number is read back. DeepSpeed's ZeRO and the scaler of float16 look at them in any case, and leave
such a step out; that they did is seen afterwards. Only then are the losses of the step read, to say which it was.

An optimizer that steps within the backward pass (LOMO, GaLore by layers) has stepped by then, and is not kept from it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

from tpo_plugin import sharding
from tpo_plugin.errors import TPOError
from tpo_plugin.training.parts import parts_of

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

logger = logging.getLogger(__name__)

OnNonfinite = Literal["stop", "skip"]

MOST_IN_A_ROW = 10
"""A training of which so many steps in a row are left out stops too."""

_WHOLE = "whole"
"""Stands for the sum of all losses, which a trainer may add to."""

_NUM_SAID = 32
"""Records that a message names."""


class NonfiniteMixin(_Trainer):
    """Stops before a step whose losses or gradients are not finite, or leaves the step out; see `wrap_trainer`."""

    tpo: Any
    on_nonfinite: OnNonfinite = "stop"

    _close_step: Any
    _losses: Sequence[dict[str, Tensor]] = ()
    """Of the micro-batches of the step in progress, as far as they were run."""
    _records: Sequence[list[str]] = ()
    """Of all of them, where they come from."""
    _left_out = False
    """Whether the step in progress is."""
    _in_a_row = 0

    def _watch_step(self, batches: list[Any]) -> None:
        """A step begins, on these micro-batches."""
        self._losses = []
        self._records = [list(batch.get("task_records") or ()) for batch in batches]

    def _watch_loss(self, total: Tensor, result: Any) -> Tensor:
        """A micro-batch's loss; where it is not finite, so is its gradient then."""
        losses = {name: loss.detach() for name, loss in result.losses.items()}
        self._losses = [*self._losses, losses | {_WHOLE: total.detach()}]
        finite = torch.isfinite(total.detach())
        return total * torch.where(finite, 1.0, torch.nan).to(total.dtype)

    @property
    def _engine_checks(self) -> bool:
        """Whether something else looks at the gradients."""
        return bool(self.is_deepspeed_enabled or self.accelerator.scaler is not None)

    def _check_gradients(self) -> None:
        """Of a whole step: stops, or takes them away, so that no optimizer steps."""
        own = {n: sharding.local(p.grad) for n, p in self.model.named_parameters() if p.grad is not None}
        finite = _all_finite(list(own.values()))
        if self.is_fsdp_enabled:  # a rank has a part of each
            finite = not self.accelerator.reduce(torch.tensor(float(not finite), device=self.args.device))
        if finite:
            return
        parts = parts_of(self.model)
        found = [(parts[n] or ["language"])[0] for n, g in own.items() if not _all_finite([g])]
        wrong = dict.fromkeys(gather_object(found) if self.is_fsdp_enabled else found)
        self._leave_out(self.state.global_step + 1, f"the gradient of {', '.join(map(repr, wrong))}")
        for parameter in self.model.parameters():
            parameter.grad = None

    def _check_engine(self) -> None:
        """Behind a step: where an engine left it out, and not for a float16 scale that is too large, stops or warns."""
        if not self._left_out and self.accelerator.optimizer_step_was_skipped:
            wrong = any(not _all_finite(list(losses.values())) for losses in self._losses)
            if self.accelerator.reduce(torch.tensor(float(wrong), device=self.args.device)) or self._loss_scale() <= 1:
                self._leave_out(self.state.global_step, "a gradient")
        self._in_a_row = self._in_a_row + 1 if self._left_out else 0

    def _loss_scale(self) -> float:
        """What an engine multiplies the loss by, and lowers where a gradient overflows."""
        if self.is_deepspeed_enabled:
            return float(getattr(self.accelerator.deepspeed_engine_wrapped.engine.optimizer, "loss_scale", 1.0))
        return float(self.accelerator.scaler.get_scale())

    def _leave_out(self, step: int, gradient: str) -> None:
        """Says what is not finite: losses, or else this gradient. Raises `TPOError` where that is to stop."""
        mine = [
            ([name for name, loss in losses.items() if not _all_finite([loss])], records)
            for losses, records in zip(self._losses, self._records, strict=True)
        ]
        all_ranks = gather_object(mine) if self.accelerator.num_processes > 1 else mine
        wrong = [(names, records) for names, records in all_ranks if names]
        losses = list(dict.fromkeys(name for names, _ in wrong for name in names if name != _WHOLE or len(names) == 1))
        what = f"the loss of {', '.join(map(repr, losses))}" if losses else gradient
        records = [record for _, records in wrong or all_ranks for record in records]
        more = f" and {len(records) - _NUM_SAID} more" if len(records) > _NUM_SAID else ""
        said = ", ".join(records[:_NUM_SAID]) + more or "unknown, as its collator gives no task_records"
        text = f"step {step}: {what} is NaN or infinite; its records: {said}"
        if self.on_nonfinite == "stop":
            raise TPOError(
                f"{text}. No step was taken with it. Look at these records, the learning rates and the precision, or "
                "leave such steps out with on_nonfinite 'skip'"
            )
        if self._in_a_row + 1 >= MOST_IN_A_ROW:
            raise TPOError(f"{text}, as in the {MOST_IN_A_ROW - 1} steps before it: nothing trains any more")
        self._left_out = True
        if self.is_world_process_zero():
            logger.warning("%s. The step is left out", text)


class CheckEngine(TrainerCallback):
    """Looks at what the engine did in a step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Has DeepSpeed look at gradients in every precision; without ZeRO it does not, so that we do."""
        if self.trainer.is_deepspeed_enabled:
            optimizer = self.trainer.accelerator.deepspeed_engine_wrapped.engine.optimizer
            if hasattr(optimizer, "overflow"):
                optimizer.check_grad_overflow = True
            else:
                optimizer.register_step_pre_hook(lambda *_: self.trainer._check_gradients())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The engine has stepped, or has not."""
        self.trainer._check_engine()
        self.trainer._close_step()


def _all_finite(tensors: list[Tensor]) -> bool:
    """Whether all values are finite; on a device, one number is read back."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        dense = tensor.coalesce().values() if tensor.is_sparse else tensor
        if dense.numel():
            groups.setdefault((dense.device, dense.dtype), []).append(dense)
    # The largest magnitude, which overflows in no precision.
    largest = [torch.stack(torch._foreach_norm(group, torch.inf)).max() for group in groups.values()]
    return not largest or bool(
        torch.isfinite(torch.stack([value.float().to(largest[0].device) for value in largest])).all()
    )
