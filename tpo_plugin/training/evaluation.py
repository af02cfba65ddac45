"""What training and evaluation report beside the loss: rates of the assignment, mean losses, the heads' metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object, recursively_apply, send_to_device
from torch import Tensor

from tpo_plugin.positions import Counts
from tpo_plugin.tasks import Tasks

ALIKE = 0.05
"""By how much at most a metric, 0 to 1, is above that of a constant prediction while a head has learnt nothing."""
STATISTICS = ("assign_correct", "assign_total", "false_triggers", "ordinary")
"""Counts that `TPOOutput.statistics` may hold."""


def rates(counts: dict[str, float]) -> dict[str, float]:
    """ "assign_accuracy" and "false_trigger_rate" (of ordinary positions, how many would emit a trigger), 0 to 1."""
    found = {}
    if counts["assign_total"]:
        found["assign_accuracy"] = counts["assign_correct"] / counts["assign_total"]
    if counts["ordinary"]:
        found["false_trigger_rate"] = counts["false_triggers"] / counts["ordinary"]
    return found


class Evaluation:
    """What one evaluation found so far."""

    def __init__(self, tasks: Tasks) -> None:
        self.config = tasks.config
        self.metrics = {name: head.metrics() for name, head in tasks.heads.items()}
        self.sums: dict[str, Tensor] = {}
        self.num_batches = 0
        """Of this rank, so far."""
        self.num_rows = 0
        """Of this rank's last batch; 0 where it does not count."""

    def begin(self, num_rows: int, *, counts: bool) -> None:
        """This rank's next batch has so many rows."""
        self.num_batches += 1
        self.num_rows = num_rows if counts else 0

    def gather(self, data: Any, accelerator: Any) -> Any:
        """Rows of all ranks' last batches, of those that count, in the order of one process. Collective."""
        sizes = accelerator.gather(torch.tensor([self.num_rows], device=accelerator.device)).tolist()
        rows = accelerator.gather(accelerator.pad_across_processes(data, dim=0))
        return recursively_apply(
            lambda t: torch.cat([part[:size] for part, size in zip(t.chunk(len(sizes)), sizes, strict=True)]), rows
        )

    @torch.no_grad()
    def add(self, result: Any, targets: dict[str, Any], counts: Counts, accelerator: Any) -> None:
        """Adds a batch; on several ranks, the batches of all of them, of those that count."""
        if self.num_rows:
            self._add_losses(result, counts, accelerator.device)
        heads = {name: (outputs, targets[name]) for name, outputs in result.outputs.items() if name in targets}
        heads = heads if self.num_rows else {}
        several = accelerator.num_processes > 1
        for batch in gather_object([send_to_device(heads, "cpu")]) if several else [heads]:
            for name, found in send_to_device(batch, accelerator.device).items():
                self.metrics[name].update(*found)

    def _add_losses(self, result: Any, counts: Counts, device: torch.device) -> None:
        sums = {f"loss_{kind}": loss.detach().float() * counts.of(kind) for kind, loss in result.losses.items()}
        sums |= {f"count_{kind}": torch.tensor(float(counts.of(kind))) for kind in result.losses}
        sums |= {name: value.float() for name, value in result.statistics.items()}
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.to(device)

    def compute(self, accelerator: Any) -> dict[str, float]:
        """Metric by name; "loss" is the weighted sum of all losses, as of one batch of all samples. Collective."""
        kinds = ["mllm", "assign", *self.metrics]
        names = [f"{part}_{kind}" for part in ("loss", "count") for kind in kinds] + list(STATISTICS)
        zero = torch.zeros((), device=accelerator.device)
        values = accelerator.reduce(torch.stack([self.sums.get(name, zero) for name in names]), "sum").tolist()
        sums = dict(zip(names, values, strict=True))
        losses = {kind: sums[f"loss_{kind}"] / sums[f"count_{kind}"] for kind in kinds if sums[f"count_{kind}"]}
        found = {f"loss_{kind}": loss for kind, loss in losses.items()}
        if losses:
            found["loss"] = sum(self.config.weight(kind) * loss for kind, loss in losses.items())
        found |= rates(sums)
        for head, metric in self.metrics.items():
            found |= {f"{head}_{name}": value for name, value in metric.compute().items()}
            found |= {f"{head}_constant_{name}": value for name, value in metric.constant().items()}
        return found


def on_a_constant(metrics: dict[str, float], heads: Sequence[str]) -> list[str]:
    """A sentence for each head that is about as good as the best constant prediction in all metrics of that."""
    sentences = []
    for head in heads:
        mark = f"{head}_constant_"
        constants = {name.removeprefix(mark): value for name, value in metrics.items() if name.startswith(mark)}
        reached = {name: metrics[f"{head}_{name}"] for name in constants}
        if constants and all(reached[name] <= constant + ALIKE for name, constant in constants.items()):
            said = ", ".join(f"{name} {reached[name]:.3f} ({constant:.3f})" for name, constant in constants.items())
            sentences.append(
                f"{head}: about as good as the best prediction that is always the same: {said}. A loss falls to there "
                "before anything is learnt: train on, and where it stays, with the loss of this head alone for a while"
            )
    return sentences
