"""What training and evaluation report beside the loss: rates of the assignment, mean losses, the heads' metrics."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor

from tpo_plugin.positions import Counts
from tpo_plugin.tasks import Tasks

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
        self.metrics = {name: head.metrics() for name, head in tasks.heads.items()}
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, result: Any, targets: dict[str, Any], counts: Counts, accelerator: Any) -> None:
        """Adds a batch; on several ranks, the batches of all of them."""
        sums = {f"loss_{kind}": loss.detach().float() * counts.of(kind) for kind, loss in result.losses.items()}
        sums |= {f"count_{kind}": torch.tensor(float(counts.of(kind))) for kind in result.losses}
        sums |= {name: value.float() for name, value in result.statistics.items()}
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.to(accelerator.device)
        heads = {name: (outputs, targets[name]) for name, outputs in result.outputs.items() if name in targets}
        several = accelerator.num_processes > 1
        for batch in gather_object([send_to_device(heads, "cpu")]) if several else [heads]:
            for name, found in send_to_device(batch, accelerator.device).items():
                self.metrics[name].update(*found)

    def compute(self, accelerator: Any) -> dict[str, float]:
        """Metric by name."""
        kinds = ["mllm", "assign", *self.metrics]
        names = [f"{part}_{kind}" for part in ("loss", "count") for kind in kinds] + list(STATISTICS)
        zero = torch.zeros((), device=accelerator.device)
        values = accelerator.reduce(torch.stack([self.sums.get(name, zero) for name in names]), "sum").tolist()
        sums = dict(zip(names, values, strict=True))
        found = {
            f"loss_{kind}": sums[f"loss_{kind}"] / sums[f"count_{kind}"] for kind in kinds if sums[f"count_{kind}"]
        }
        found |= rates(sums)
        for head, metric in self.metrics.items():
            found |= {f"{head}_{name}": value for name, value in metric.compute().items()}
        return found
