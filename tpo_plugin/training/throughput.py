"""How fast a stage trains, and what its time goes to: waiting for data, the heads, the host.

A clock is read at the ends of every step, and nothing is waited for. Only in a step that is logged, or the last one, a
device is told to finish what it has been given: at the step's ends, before the first head, and where the gradient has
come back through the heads. The share of the heads in these steps is taken for that in all of them.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from tpo_plugin.training.measuring import num_rows

logger = logging.getLogger(__name__)

TOO_LONG, NUM_STEPS = 1 / 3, 20
"""A training that waits for data for more of its time, over at least so many steps, is held up by its loader."""


@dataclass(frozen=True)
class Throughput:
    """Of some steps, over all ranks; evaluating, saving and logging are left out."""

    samples_per_s: float
    tokens_per_s: float
    """Of `input_ids`, without padding."""
    data_share: float
    """Share of the time in which a rank waited for its loader, 0 to 1."""
    heads_share: float
    """In the heads, their losses, and the way back through both."""
    host_share: float
    """The rest: the host, both ways, and the optimizer."""
    peak_memory_gb: float | None
    """10^9 bytes, of the rank that took most: allocated on its GPU in this stage, or resident in its process so far."""

    def to_json(self) -> dict[str, float | None]:
        """The fields, with four digits."""
        return {name: None if value is None else float(f"{value:.4g}") for name, value in asdict(self).items()}

    def __str__(self) -> str:
        memory = "" if self.peak_memory_gb is None else f"; peak memory {self.peak_memory_gb:.2f} GB"
        return (
            f"{self.samples_per_s:.4g} samples/s, {self.tokens_per_s:.4g} tokens/s; of the time {self.data_share:.0%} "
            f"waiting for data, {self.host_share:.0%} host, {self.heads_share:.0%} heads{memory}"
        )


@dataclass
class _Sums:
    """Of one rank."""

    samples: int = 0
    tokens: Tensor | int = 0
    data_s: float = 0.0
    step_s: float = 0.0
    measured_s: float = 0.0
    """Of the steps that were measured."""
    heads_s: float = 0.0
    """Of these in the heads."""

    def add(self, other: _Sums) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Clocks(TrainerCallback):
    """Those of a stage's trainer, which calls `begin` and `forward`. Has to be its last callback: what the others do
    behind a step is the step's, not the loader's."""

    def __init__(self, trainer: Any, clock: Callable[[], float] = time.perf_counter) -> None:
        self.trainer, self.clock = trainer, clock
        self._recent, self._stage, self._num_steps = _Sums(), _Sums(), 0
        self._waiting_since: float | None = None
        self._began = 0.0
        self._measures = self._warned = False
        self._heads_began: float | None = None
        self._heads_ended: float | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, heads say when they run."""
        handles = [head.register_forward_pre_hook(self._head_begins) for head in self.trainer.tpo.heads.values()]
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # -- a micro-batch -------------------------------------------------------------------------------------------------

    def begin(self, inputs: Any) -> None:
        """A micro-batch is there."""
        state = self.trainer.state
        step, every = state.global_step + 1, max(int(state.logging_steps or 1), 1)
        waited = self.clock()
        self._measures = step % every == 0 or step == state.max_steps
        if self._waiting_since is not None:
            self._recent.data_s += waited - self._waiting_since
        self._waiting_since, self._began = None, self._now()
        self._recent.samples += num_rows(inputs)
        self._recent.tokens = self._recent.tokens + _num_tokens(inputs)

    def forward(self) -> None:
        """Its forward begins, if need be after those of others of its step."""
        self._close_heads()

    def _head_begins(self, head: nn.Module, args: tuple[Any, ...]) -> None:
        if not self._measures or not torch.is_grad_enabled():
            return
        if self._heads_began is None:
            self._heads_began = self._now()
        if args[0].requires_grad:
            args[0].register_hook(self._gradient_came)

    def _gradient_came(self, gradient: Tensor) -> None:
        self._heads_ended = self._now()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A micro-batch is done that is not its step's last."""
        self._close_heads()
        now = self._now()
        self._recent.step_s += now - self._began
        if self._measures:
            self._recent.measured_s += now - self._began
        self._measures, self._waiting_since = False, now

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last micro-batch of a step is done."""
        self.on_substep_end(args, state, control)
        self._num_steps += 1

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What was done since the step is not the loader's."""
        if self._waiting_since is not None:
            self._waiting_since = self.clock()

    on_evaluate = on_save = on_log

    def _close_heads(self) -> None:
        if self._heads_began is not None:
            ended = self._now() if self._heads_ended is None else self._heads_ended
            self._recent.heads_s += ended - self._heads_began
        self._heads_began = self._heads_ended = None

    def _now(self) -> float:
        if self._measures and self._device.type != "cpu":
            getattr(torch, self._device.type).synchronize(self._device)
        return self.clock()

    @property
    def _device(self) -> torch.device:
        return torch.device(self.trainer.args.device)

    # -- what they say -------------------------------------------------------------------------------------------------

    def recent(self) -> Throughput:
        """Of the steps since this was called last. Collective."""
        found = self._over_ranks(self._recent)
        self._stage.add(self._recent)
        self._recent = _Sums()
        return found

    def stage(self) -> Throughput | None:
        """Of all steps in this process; None where there were none. Collective."""
        self._stage.add(self._recent)
        self._recent = _Sums()
        return self._over_ranks(self._stage) if self._num_steps else None

    def warn_of_the_loader(self, where: str, found: Throughput) -> None:
        """Warns once where most of the time goes to waiting for data."""
        if self._num_steps < NUM_STEPS or found.data_share < TOO_LONG or self._warned:
            return
        self._warned = True
        logger.warning(
            "%s: %.0f %% of the time goes to waiting for data; have it read by more processes (data.num_workers, now "
            "%d), or give smaller pictures and shorter clips",
            where, 100 * found.data_share, self.trainer.args.dataloader_num_workers,
        )  # fmt: skip

    def _over_ranks(self, sums: _Sums) -> Throughput:
        memory = _peak_bytes(self._device)
        mine = [*vars(sums).values(), -1 if memory is None else memory]
        values = torch.tensor([[float(value) for value in mine]], dtype=torch.float64, device=self._device)
        ranks = self.trainer.accelerator.gather(values)
        samples, tokens, data_s, step_s, measured_s, heads_s, _ = ranks.sum(0).tolist()
        total_s = data_s + step_s
        each_s = total_s / len(ranks)
        data = data_s / total_s if total_s else 0.0
        heads = (1 - data) * (heads_s / measured_s if measured_s else 0.0)
        most = float(ranks[:, -1].max())
        return Throughput(
            samples / each_s if each_s else 0.0,
            tokens / each_s if each_s else 0.0,
            data,
            heads,
            1 - data - heads,
            None if most < 0 else most / 1e9,
        )


def _num_tokens(inputs: Any) -> Tensor | int:
    """Without padding; still on the device."""
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.detach().ne(0).sum()
    ids = inputs.get("input_ids")
    return 0 if ids is None else ids.numel()


def _peak_bytes(device: torch.device) -> int | None:
    """The most that this process took; None where it cannot be known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
