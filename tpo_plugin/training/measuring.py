"""What a wrapped trainer logs and evaluates beside the loss."""

from __future__ import annotations

import functools
import inspect
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn

from tpo_plugin.training import free
from tpo_plugin.training.counting import count_batch
from tpo_plugin.training.evaluation import STATISTICS, Evaluation, on_a_constant, rates
from tpo_plugin.training.idle import share_media
from tpo_plugin.training.once import AGAIN, each_sample_once

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

logger = logging.getLogger(__name__)

_NUMBERS = ("num_steps", "num_left_out", "total_loss", "total_steps")
"""What is saved beside the sums."""
_PREPARED = ("_is_accelerate_prepared", "_original_forward", "forward")
"""What accelerate sets on a model that it prepares."""


class MeasuringMixin(_Trainer):
    """Logs every loss and the assignment's statistics, and evaluates with the heads' metrics."""

    tpo: Any
    _computes_loss: Any
    gather_function: Any
    eval_generations = 0
    """Questions that are answered in an evaluation with nothing forced."""
    _evaluation: Evaluation | None = None
    _counts: Callable[[int], bool]
    """Whether this rank's batch of that number counts."""
    _left_out: bool
    _is_split: bool
    _total_loss, _total_steps = 0.0, 0
    """Of all steps whose sums were logged."""

    def _start_sums(self) -> None:
        """Begins to sum over the steps until the next log."""
        self._sums: dict[str, Tensor] = {}
        self._of_step: dict[str, Tensor] = {}
        self._num_steps = self._num_left_out = 0

    def _forget_output(self) -> None:
        self.tpo.last_output = None

    def _sums_to_json(self) -> dict[str, Any]:
        """Plain values of what was summed."""
        sums = {name: value.item() for name, value in self._sums.items()}
        return {"sums": sums} | {name: getattr(self, f"_{name}") for name in _NUMBERS}

    def _restore_sums(self, saved: list[dict[str, Any]]) -> None:
        """What `_sums_to_json` gave on each rank; on another number of ranks the first one goes on with all."""
        for name in _NUMBERS:
            setattr(self, f"_{name}", saved[0][name])
        ranks, rank = self.args.world_size, self.args.process_index
        sums: dict[str, float] = {}
        if len(saved) == ranks:
            sums = saved[rank]["sums"]
        elif rank == 0:
            names = dict.fromkeys(name for state in saved for name in state["sums"])
            sums = {name: sum(state["sums"].get(name, 0.0) for state in saved) for name in names}
            sums |= {name: value * ranks / len(saved) for name, value in sums.items() if name == "loss"}
        self._sums = {name: torch.tensor(value, device=self.accelerator.device) for name, value in sums.items()}

    # -- logging -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _record(self, result: Any) -> None:
        """Adds a micro-batch's losses and counts to those of its step on the device; nothing is read before `log`."""
        values = {f"loss_{kind}": loss.detach().float() for kind, loss in result.losses.items()}
        values |= {name: value.float() for name, value in result.statistics.items()}
        _add(self._of_step, values)

    def _close_step(self) -> None:
        """Adds the step's values to the sums, unless it was left out."""
        if self._left_out:
            self._num_left_out += 1
        else:
            self._num_steps += 1
            _add(self._sums, self._of_step)
        self._of_step, self._left_out = {}, False

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The base trainer's step. Its sums of the loss are lost when it stops, so that we have our own."""
        loss = super().training_step(*args, **kwargs)
        _add(self._of_step, {"loss": loss.detach().float()})
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean of each loss over the steps since the last log, and the assignment's statistics.

        Losses of weight 0 are not computed in training, and not logged; an evaluation has them.

        Both, and the mean loss at the end, go over all steps of a training that was stopped and went on, but not over
        those that were left out: "steps_left_out" says how many were.
        """
        if "loss" in logs and self._num_left_out:
            logs["steps_left_out"] = self._num_left_out
            if not self._num_steps:
                del logs["loss"]
                self._start_sums()
        if "loss" in logs and self._num_steps:
            logs |= self._drain()
        if "train_loss" in logs:
            logs["train_loss"] = self.mean_loss()
        super().log(logs, *args, **kwargs)

    def mean_loss(self) -> float:
        """Of all steps so far that were taken. Collective."""
        if self._num_steps:
            self._drain()
        return self._total_loss / max(self._total_steps, 1)

    def _drain(self) -> dict[str, float]:
        kinds = [kind for kind in ("mllm", "assign", "retain", *self.tpo.heads) if self.tpo.config.weight(kind)]
        names = ["loss", *(f"loss_{kind}" for kind in kinds), *STATISTICS]
        zero = torch.zeros((), device=self.accelerator.device)
        sums = torch.stack([self._sums.get(name, zero).to(zero.device) for name in names])
        values = dict(zip(names, self.accelerator.reduce(sums, "sum").tolist(), strict=True))
        values["loss"] /= self.accelerator.num_processes
        self._total_loss += values["loss"]
        self._total_steps += self._num_steps
        logs = {name: value / self._num_steps for name, value in values.items() if name not in STATISTICS}
        self._start_sums()
        return logs | rates(values)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The base trainer's loop, with every loss, the assignment's statistics and the heads' metrics in its metrics.

        All of these are teacher-forced; with `eval_generations`, what the model says freely is beside them (`free.py`).

        Every sample counts once, whatever the ranks and the sizes of batches. The loss is the weighted sum of all
        losses, as of one batch of all samples, unless the base trainer computes one of its own. Random states are
        afterwards what they were, so that a training is the same whenever it evaluates.
        """
        given = inspect.signature(super().evaluation_loop).bind(*args, **kwargs).arguments
        prefix = given.get("metric_key_prefix", "eval")
        self._evaluation, gather = Evaluation(self.tpo), self.gather_function
        if self.accelerator.num_processes > 1:
            self.gather_function = functools.partial(self._evaluation.gather, accelerator=self.accelerator)
        try:
            with (
                _random_states_kept(),
                self._prepared_for_now(),
                each_sample_once(given["dataloader"]) as self._counts,
            ):
                output = super().evaluation_loop(*args, **kwargs)
                metrics = self._evaluation.compute(self.accelerator)
                if self.is_world_process_zero():
                    for sentence in on_a_constant(metrics, list(self.tpo.heads)):
                        logger.warning("%s, step %d: %s", prefix, self.state.global_step, sentence)
                metrics |= free.ask(self, given["dataloader"].dataset, prefix, metrics)
        finally:
            self._evaluation, self.gather_function = None, gather
        if self._computes_loss:
            metrics.pop("loss", None)
        output.metrics.update({f"{prefix}_{name}": value for name, value in metrics.items()})
        return output

    @contextmanager
    def _prepared_for_now(self) -> Iterator[None]:
        """A model that accelerate prepares for an evaluation is afterwards as it was before.

        For an evaluation it prepares it without DDP, and never again: a training after it would leave the ranks apart.
        """
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            yield
            return
        attributes, models = self.model.__dict__, self.accelerator._models
        before, models_before = {name: attributes[name] for name in _PREPARED if name in attributes}, list(models)
        try:
            yield
        finally:
            for name in _PREPARED:
                attributes.pop(name, None)
            attributes.update(before)
            models[:] = models_before

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The base trainer's step; what the heads gave in it is measured."""
        self._forget_output()
        again = inputs.pop(AGAIN, False)
        if self._evaluation is not None:
            counts = not again and self._counts(self._evaluation.num_batches)
            self._evaluation.begin(num_rows(inputs), counts=counts)
        if self._is_split:
            share_media(self, [inputs])
        step = super().prediction_step(model, inputs, *args, **kwargs)
        result = self.tpo.last_output
        if self._evaluation is not None and result is not None:
            targets = inputs.get("task_targets") or {}
            self._evaluation.add(result, targets, count_batch(self.tpo, inputs), self.accelerator)
        return step


def num_rows(batch: Any) -> int:
    """Samples of a batch; media may be another number."""
    names = ("labels", "input_ids", "inputs_embeds", *batch)
    return next(len(batch[name]) for name in names if isinstance(batch.get(name), Tensor))


def _add(sums: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Of torch on the CPU and on this process's GPU, of numpy and of Python."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    device = PartialState().device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)
