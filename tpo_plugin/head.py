"""What a task head is: a module from task embeddings to a prediction, with its loss, collation, metrics and drawing.

Suffixes of tensor names: N task tokens in the batch, D the host's hidden size, M input tokens in the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpo_plugin.errors import TPOError

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from tpo_plugin.data.dataset import Sample
    from tpo_plugin.data.media import VideoClip


class Linear(nn.Linear):
    """A Linear that computes in float32 whatever its weight was cast to, as DeepSpeed's bf16 engine casts all."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.linear(input.float(), self.weight.float(), bias)


class TaskHead(nn.Module):
    """Base of every head. A subclass writes `__init__(self, config, hidden_size)`, `forward` and `loss`.

    An `__init__` that declares a third parameter `vision_size` gets the width of `seen.vision`, None for a text host.

    Everything else has a default that fits a head with one task token per task and tensors as targets. The core calls
    a head in float32 with autocast off; it calls it in every training step, with N = 0 where a batch has no task token,
    so sums over targets, never means.
    """

    def forward(self, e_ND: Tensor) -> dict[str, Tensor]:
        """From task embeddings [N, D], float32, to outputs whose first dimension is N.

        What else it needs, it declares as parameters of these names:
        `inputs`: what `collate_inputs` made (of no tasks, where the batch has none).
        `batch_rows`: the batch row of each task token, int64 [N].
        `seen`: the host's own states of the prompt's text and of the video's frames, `tpo_plugin.HostFeatures`.
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

    external: tuple[str, ...] = ()
    """Prefixes of state-dict keys whose weights come from a file that the head's config names (and loads when it is
    built), so that `tpo_model.safetensors` does not hold them."""

    joins: bool = False
    """Whether the tokens of one task belong together: in an answer, those that stand directly one behind the other are
    then one prediction. Its value is the sequence of theirs, which `to_units`, `to_json` and `draw` get as a whole."""

    # -- records ---------------------------------------------------------------------------------------------------

    def check_task(self, task: dict[str, Any]) -> None:
        """Raises `ValueError` with the field and what is wrong with it when a record's task cannot be used."""

    def resolve(self, task: dict[str, Any], folder: Path) -> dict[str, Any]:
        """The task with paths that are relative to the records' media folder made absolute; by default as it is."""
        return task

    def check_sample(self, tasks: list[dict[str, Any]], sample: Sample) -> None:
        """Raises `MediaError` where a record's media, once read, cannot serve this head's tasks: it is then skipped and
        counted, as one whose media cannot be read.
        """

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
        """From the tasks to predict and those that the user gives (human turns) to `task_inputs[head]`, or None.

        A head that looks at the media declares a third parameter `samples`, and gets the `tpo_plugin.data.Sample` of
        each row of the batch: for training where the batch has a task of it, for generation always (without tasks).
        """
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

    def draw_video(self, video: VideoClip, values: list[Any], path: Path) -> Path | None:
        """Writes what shows the predictions on a clip, as `path` with the suffix of its kind (".png", ".mp4").

        `values` are this head's, of one answer. Returns the file; None, as here, where a value belongs to one frame,
        which `draw` draws on.
        """
        return None


def collate_inputs(head: TaskHead, tasks: list[Any], given: list[Any], samples: Sequence[Any]) -> Any:
    """`head.collate_inputs`, with the samples if it asks for them."""
    return head.collate_inputs(tasks, given, **({"samples": samples} if asks_for_samples(head) else {}))


def asks_for_samples(head: TaskHead) -> bool:
    """Whether its `collate_inputs` declares the parameter `samples`."""
    return "samples" in inspect.signature(head.collate_inputs).parameters


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
