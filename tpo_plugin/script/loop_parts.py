"""The parts of a training loop without a transformers Trainer: its model, optimizers and loaders, with TPO in them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from tpo_plugin.apply import apply_tpo
from tpo_plugin.errors import TPOError
from tpo_plugin.script.arrivals import Arrivals
from tpo_plugin.script.expand import ScriptTasks
from tpo_plugin.script.rows import TaskCollator
from tpo_plugin.script.samples import with_tasks
from tpo_plugin.script.settings import ScriptSettings
from tpo_plugin.training.counting import count_step

logger = logging.getLogger(__name__)

LOOKED_AT = 8
"""Micro-batches of which it is looked at whether the loop trains on the model's loss."""


@dataclass(frozen=True, kw_only=True)
class Runner:
    """What Accelerate or Lightning knows of a loop."""

    name: str
    accumulation: Callable[[], int]
    """Micro-batches of a step; each loss is divided by it."""
    num_ranks: int
    """Over which gradients are averaged."""
    add_ranks: Callable[[Tensor], Tensor]
    """Adds numbers over ranks."""
    saves: bool
    """Whether this rank is the one that writes files."""


class Loop:
    """A language model in somebody's loop, with TPO put onto it."""

    def __init__(self, model: nn.Module, settings: ScriptSettings, runner: Runner) -> None:
        self.model, self.settings, self.runner = model, settings, runner
        self.by_id = ScriptTasks.of(settings).by_id
        before = {id(p) for p in model.parameters()}
        apply_tpo(model, None, heads=settings.heads, config=settings.tpo_config())
        base = getattr(model, "get_base_model", None)
        self.host = base() if callable(base) else model
        self.tpo = self.host.tpo
        self._gone = before - {id(p) for p in model.parameters()}
        self._arrivals: list[Arrivals] = []
        self._looked = 0
        if hasattr(model, "save_pretrained"):
            model.__dict__["save_pretrained"] = self._saving(model.save_pretrained)
        logger.warning("tpo run: heads %s on %s", settings.heads, type(self.host).__name__)

    def add_to(self, optimizers: list[Optimizer]) -> None:
        """What TPO has to learn goes into the optimizers' first group, unless it is in one. Raises `TPOError`."""
        held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        if held & self._gone:
            raise TPOError(
                f"tpo run: the optimizer was made before the vocabulary of {type(self.host).__name__} grew by the "
                "tokens of the heads, and would train rows that are not used any more: resize the token embeddings to "
                "the tokenizer's length before you make the optimizer"
            )
        missing = [p for p in self.tpo.parameters() if p.requires_grad and id(p) not in held]
        optimizers[0].param_groups[0]["params"].extend(missing)

    def read(self, loader: DataLoader[Any]) -> None:
        """Has a loader read the tasks of its rows."""
        loader.__dict__["dataset"] = with_tasks(loader.dataset, self.tpo, self.by_id)
        loader.collate_fn = TaskCollator(self.tpo, loader.collate_fn, self.by_id)

    def count(self, loader: DataLoader[Any], *, trains: Callable[[], bool]) -> None:
        """Has a loader fetch a whole step's micro-batches ahead, where it `trains`, and count their targets."""
        kind, steps = type(loader), _Steps(self, self._watch(loader), trains)

        def batches(self: DataLoader[Any]) -> Iterator[Any]:
            return steps.counted(kind.__iter__(self))

        loader.__class__ = type(kind.__name__, (kind,), {"__iter__": batches})

    def _watch(self, loader: DataLoader[Any]) -> Arrivals:
        accelerator = SimpleNamespace(device="cpu", reduce=lambda number, how: self.runner.add_ranks(number))
        trainer = SimpleNamespace(
            train_dataset=loader.dataset,
            data_collator=loader.collate_fn,
            state=SimpleNamespace(logging_steps=1, epoch=0),
            accelerator=accelerator,
        )
        self._arrivals.append(Arrivals(trainer, self.by_id))
        return self._arrivals[-1]

    def check_loss(self, loss: Any) -> None:
        """Raises `TPOError` where the loop trains on anything but the model's loss, with a weight of 1."""
        result = self.tpo.last_output
        if self._looked >= LOOKED_AT or result is None or result.loss is None or not isinstance(loss, Tensor):
            return
        self._looked += 1
        share = torch.autograd.grad(loss, result.loss, retain_graph=True, allow_unused=True)[0]
        found = 0.0 if share is None else float(share) / self.scale
        if abs(found - 1) > 1e-3:
            raise TPOError(
                f"tpo run: this loop trains on {found:.4g} times the loss that the model returns, which is that of the "
                f"whole step already: use loss = model(**batch).loss as it is, and have {self.runner.name} accumulate "
                "(gradient_accumulation_steps of Accelerator and accelerator.accumulate, accumulate_grad_batches of "
                "Lightning)"
            )

    @property
    def scale(self) -> int:
        """What a loss will be divided by on its way."""
        return self.runner.accumulation() * self.runner.num_ranks

    def save(self, directory: Any) -> None:
        """TPO, beside what the loop saves. Raises `TPOError` where no task came in all of its steps."""
        if all(not arrivals.rows for arrivals in self._arrivals):
            for arrivals in self._arrivals:
                arrivals.finish()
        if self.runner.saves:
            self.tpo.save_pretrained(directory)

    def _saving(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def save_pretrained(save_directory: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(save_directory, *args, **kwargs)
            self.save(save_directory)
            return result

        return save_pretrained


class _Steps:
    """The steps of a loader."""

    def __init__(self, loop: Loop, arrivals: Arrivals, trains: Callable[[], bool]) -> None:
        self.loop, self.arrivals, self.trains = loop, arrivals, trains
        self.began = False

    def counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; where they are trained each has the counts of its whole step."""
        runner = self.loop.runner
        while step := list(islice(batches, runner.accumulation() if self.trains() else 1)):
            if self.trains() and all(isinstance(batch, Mapping) for batch in step):
                self._begin()
                count_step(self.loop.tpo, step, runner.add_ranks, scale=self.loop.scale, measure=False, logits=True)
                self.arrivals.add(step)
            yield from step

    def _begin(self) -> None:
        if not self.began:
            self.began = True
            self.arrivals.expect()
            self.loop.settings.mark(self.loop.runner.name)
