"""What a wrapped trainer logs and evaluates beside the loss."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tpo_plugin.training.evaluation import STATISTICS, Evaluation, rates

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class MeasuringMixin(_Trainer):
    """Logs every loss and the assignment's statistics, and evaluates with the heads' metrics."""

    tpo: Any
    _count_batch: Any
    _evaluation: Evaluation | None = None

    def _start_sums(self) -> None:
        """Begins to sum over the steps until the next log."""
        self._sums: dict[str, Tensor] = {}
        self._num_steps = 0

    def _forget_output(self) -> None:
        self.tpo.last_output = None

    # -- logging -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _record(self, result: Any) -> None:
        """Adds a micro-batch's losses and counts to the sums on the device; nothing is read back before `log`."""
        values = {f"loss_{kind}": loss.detach().float() for kind, loss in result.losses.items()}
        values |= {name: value.float() for name, value in result.statistics.items()}
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean of each loss over the steps since the last log, and the assignment's statistics."""
        if "loss" in logs and self._num_steps:
            logs |= self._drain()
        super().log(logs, *args, **kwargs)

    def _drain(self) -> dict[str, float]:
        names = [f"loss_{kind}" for kind in ("mllm", "assign", *self.tpo.heads)] + list(STATISTICS)
        zero = torch.zeros((), device=self.accelerator.device)
        sums = torch.stack([self._sums.get(name, zero).to(zero.device) for name in names])
        values = dict(zip(names, self.accelerator.reduce(sums, "sum").tolist(), strict=True))
        logs = {name: value / self._num_steps for name, value in values.items() if name not in STATISTICS}
        self._start_sums()
        return logs | rates(values)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The base trainer's loop, with every loss, the assignment's statistics and the heads' metrics in its metrics.

        Samples that accelerate repeats to give every rank as many are counted twice.
        """
        given = inspect.signature(super().evaluation_loop).bind(*args, **kwargs).arguments
        prefix = given.get("metric_key_prefix", "eval")
        self._evaluation = Evaluation(self.tpo)
        try:
            output = super().evaluation_loop(*args, **kwargs)
            metrics = self._evaluation.compute(self.accelerator)
        finally:
            self._evaluation = None
        output.metrics.update({f"{prefix}_{name}": value for name, value in metrics.items()})
        return output

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The base trainer's step; what the heads gave in it is measured."""
        self._forget_output()
        step = super().prediction_step(model, inputs, *args, **kwargs)
        result = self.tpo.last_output
        if self._evaluation is not None and result is not None:
            self._evaluation.add(result, inputs.get("task_targets") or {}, self._count_batch(inputs), self.accelerator)
        return step
