"""What a task head is: a module from task embeddings to a prediction, with its loss, collation, metrics and drawing.

Suffixes of tensor names: N task tokens in the batch, D the host's hidden size, M input tokens in the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpo_plugin.errors import TPOError

if TYPE_CHECKING:
    from PIL.Image import Image


class Linear(nn.Linear):
    """A Linear that computes in float32 whatever its weight was cast to, as DeepSpeed's bf16 engine casts all."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.linear(input.float(), self.weight.float(), bias)


class TaskHead(nn.Module):
    """Base of every head. A subclass writes `__init__(self, config, hidden_size)`, `forward` and `loss`.

    Everything else has a default that fits a head with one task token per task and tensors as targets. The core calls
    a head in float32 with autocast off; it calls it in every training step, with N = 0 where a batch has no task token,
    so sums over targets, never means.
    """

    def forward(self, e_ND: Tensor) -> dict[str, Tensor]:
        """From task embeddings [N, D], float32, to outputs whose first dimension is N.

        A head that looks at the media too declares a parameter `inputs`, and gets what `collate_inputs` made (of no
        tasks, where the batch has none); one that must know which sample a task token belongs to declares `batch_rows`,
        and gets that row of each, int64 [N].
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(self, e_ND)")

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Any], num_targets: Tensor | int) -> dict[str, Tensor]:
        """Named scalars `loss_*`, each a sum over targets divided by `num_targets` (a number of at least 1).

        `outputs` is what `forward` gave, `targets` what `collate_targets` made, in the order of the task tokens.
        `num_targets` counts the targets of the whole accumulated global batch, not of this micro-batch.
        """
        raise NotImplementedError(f"{type(self).__name__} must define loss(self, outputs, targets, num_targets)")

    def encode(self, inputs: dict[str, Any]) -> Tensor:
        """From what the user gives in the prompt to embeddings [M, D], one for each input token, in their order."""
        raise TPOError(f"head {type(self).__name__} takes no input in the prompt: it defines no encode(self, inputs)")

    # -- records ---------------------------------------------------------------------------------------------------

    def check_task(self, task: dict[str, Any]) -> None:
        """Raises `ValueError` with the field and what is wrong with it when a record's task cannot be used."""

    def num_tokens(self, task: dict[str, Any]) -> int:
        """How many task tokens (or, in a human turn, input tokens) a record's task takes; for example one per box."""
        return 1

    def collate_targets(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        """From the tasks of a batch, in the order of their task tokens, to `task_targets[head]`.

        By default every field of the tasks except "head" and "time" becomes one float32 tensor, first dimension N.
        """
        fields = [key for key in (tasks[0] if tasks else {}) if key not in ("head", "time")]
        for task in tasks:
            if set(task) - {"head", "time"} != set(fields):
                raise TPOError(
                    f"{type(self).__name__}: one task has the fields {sorted(fields)}, another "
                    f"{sorted(set(task) - {'head', 'time'})}; "
                    "expected the same in all, or a collate_targets of the head's own"
                )
        return {key: torch.tensor([task[key] for task in tasks], dtype=torch.float32) for key in fields}

    def collate_inputs(self, tasks: list[dict[str, Any]], given: list[dict[str, Any]]) -> dict[str, Any] | None:
        """From the tasks to predict and those that the user gives (human turns) to `task_inputs[head]`, or None."""
        return None

    def count_targets(self, targets: dict[str, Any] | None) -> int:
        """Number of task tokens that `targets` serve: by default the length of its first entry."""
        return len(next(iter(targets.values()))) if targets else 0

    # -- results ---------------------------------------------------------------------------------------------------

    def postprocess(self, outputs: dict[str, Tensor]) -> Any:
        """From outputs to one value for each task token: a sequence of length N (by default the only output itself)."""
        if len(outputs) == 1:
            return next(iter(outputs.values()))
        return [dict(zip(outputs, values, strict=True)) for values in zip(*outputs.values(), strict=True)]

    def score(self, outputs: dict[str, Tensor]) -> Tensor | None:
        """Confidence of each prediction, [N] in 0 to 1, or None where the head has none of its own."""
        return None

    def to_units(self, value: Any, *, width: int | None, height: int | None, duration: float | None) -> Any:
        """A value in pixels of a `width` x `height` image or seconds of a `duration`; by default the value itself."""
        return value

    def to_json(self, value: Any) -> Any:
        """A value as plain lists, numbers and strings."""
        if isinstance(value, Tensor):
            return value.tolist()
        if isinstance(value, dict):
            return {key: self.to_json(item) for key, item in value.items()}
        return value

    def metrics(self) -> HeadMetrics:
        """A fresh accumulator of this head's evaluation metrics; by default its mean losses."""
        return HeadMetrics(self)

    def draw(self, image: Image, value: Any, target: Any = None) -> Image:
        """A copy of `image` with the value (and the true one, in the same format) drawn on it; by default unchanged."""
        return image.copy()


class HeadMetrics:
    """Accumulates over evaluation batches. A head with better metrics returns its own object with these methods."""

    def __init__(self, head: TaskHead) -> None:
        self.head, self.num_targets = head, 0
        self.sums: dict[str, float] = {}

    def update(self, outputs: dict[str, Tensor], targets: dict[str, Any]) -> None:
        """Adds a batch: outputs of `forward` and the targets of the same task tokens."""
        for name, value in self.head.loss(outputs, targets, 1).items():
            self.sums[name] = self.sums.get(name, 0.0) + value.item()
        self.num_targets += self.head.count_targets(targets)

    def compute(self) -> dict[str, float]:
        """Metric by name; empty where nothing was added."""
        return {name: value / self.num_targets for name, value in self.sums.items()} if self.num_targets else {}
