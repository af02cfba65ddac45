"""What a task head is: a module from task embeddings to a prediction, with its loss, collation, metrics and drawing.

Suffixes of tensor names: N task tokens in the batch, D the host's hidden size, M input tokens in the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpo_plugin.codec import HeadCodec, TaskCodec, asks_for_samples, check_codec, collate_inputs
from tpo_plugin.declarations import check_names, check_parameters
from tpo_plugin.errors import TPOError
from tpo_plugin.plugins import HeadSpec

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

__all__ = [
    "Benchmark",
    "HeadAnswer",
    "HeadMetrics",
    "Linear",
    "TaskHead",
    "asks_for_samples",
    "bare_codec",
    "build_head",
    "collate_inputs",
]

_ANY_SIZE = 1024
"""Width of a host that is not there."""


class Linear(nn.Linear):
    """A Linear that computes in float32 whatever its weight was cast to, as DeepSpeed's bf16 engine casts all."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.linear(input.float(), self.weight.float(), bias)


class TaskHead(nn.Module, TaskCodec):
    """Base of every head. A subclass writes `__init__(self, config, hidden_size)`, `forward` and `loss`.

    An `__init__` that declares a third parameter `vision_size` gets the width of `seen.vision`, None for a text host.

    Everything else has a default that fits a head with one task token per task and tensors as targets. What it does
    with records is `TaskCodec`'s. A parameter or method of nearly one of these names is refused. The core calls
    a head in float32 with autocast off; it calls it in every training step, with N = 0 where a batch has no task token,
    so sums over targets, never means.
    """

    def __init__(self) -> None:
        nn.Module.__init__(self)

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

    def benchmarks(self) -> dict[str, Benchmark]:
        """Scorers of published benchmarks by name, for `tpo eval --benchmark NAME`; none by default."""
        return {}

    def draw(self, image: Image, value: Any, target: Any = None) -> Image:
        """A copy of `image` with the value (and the true one, in the same format) drawn on it; by default unchanged.

        `image` may be enlarged: it has the medium's proportions, and not always its pixels.
        """
        return image.copy()

    def draw_video(self, video: Any, values: list[Any], path: Path) -> Path | None:
        """Writes what shows the predictions on a clip, as `path` with the suffix of its kind (".png", ".mp4").

        `video` is a `tpo_plugin.VideoClip`, `values` are this head's, of one answer. Returns the file; None, as here,
        where a value belongs to one frame, which `draw` draws on.
        """
        return None


def build_head(
    spec: HeadSpec, config: Any, hidden_size: int, vision_size: Callable[[], int | None] = lambda: None
) -> TaskHead:
    """The registered head, built; `vision_size` is asked only for a head that declares it.

    Raises `TPOError` for a class that is no `TaskHead`, and where it declares a name that the core does not know: a
    parameter of `__init__`, `forward` or `collate_inputs`, or a method that is nearly one of `TaskHead`.
    """
    head_class: Any = spec.head_class()
    where = f"head {spec.name!r} ({spec.plugin})"
    if not (isinstance(head_class, type) and issubclass(head_class, TaskHead)):
        found = getattr(head_class, "__name__", repr(head_class))
        raise TPOError(f"{where} is a {found}; expected a subclass of tpo_plugin.TaskHead")
    check_parameters(head_class.__init__, ("config", "hidden_size"), ("vision_size",), f"{where}: __init__")
    check_parameters(head_class.forward, ("e_ND",), ("inputs", "batch_rows", "seen"), f"{where}: forward")
    check_codec(head_class, where)
    check_names(head_class, TaskHead, where)
    asks = "vision_size" in inspect.signature(head_class).parameters
    build: Any = head_class
    return build(config, hidden_size, **({"vision_size": vision_size()} if asks else {}))


def bare_codec(spec: HeadSpec, config: Any, head: TaskHead | None = None) -> HeadCodec:
    """The codec of a head that is registered with none: the head itself, without its weights.

    `head` is the head where it is built already; else it is built on PyTorch's device "meta", which holds no weights.
    """
    if head is None:
        with torch.device("meta"):
            head = build_head(spec, config, _ANY_SIZE, lambda: _ANY_SIZE)
    return HeadCodec(spec.name, _bare(head))


def _bare(head: TaskHead) -> TaskHead:
    """A shallow copy without parameters, buffers, submodules and hooks."""
    bare = object.__new__(type(head))
    nn.Module.__init__(bare)
    for name, value in vars(head).items():
        bare.__dict__.setdefault(name, value)
    return bare


@dataclass(frozen=True, kw_only=True)
class HeadAnswer:
    """What an answer gave of one head, beside what the record wants of it: what a `Benchmark` scores."""

    values: list[Any]
    """Of its task tokens in the answer, in their order, as `postprocess` gives them; empty where it was not called."""
    scores: list[float | None]
    """Confidence of each: the head's own where it has one, else the trigger's probability."""
    tasks: list[dict[str, Any]]
    """Of the record's answer."""
    question: str
    text: str
    """What was said, without the tokens of heads."""
    reference: str
    """What the record says, likewise."""
    medium: str = ""
    """Path of the first image or video."""
    width: int | None = None
    height: int | None = None
    """Pixels of it."""
    duration_s: float | None = None
    """Of a video."""


@dataclass(frozen=True)
class Benchmark:
    """A published scorer."""

    convention: str
    """What its numbers are, and where they part from other scorers of the same name."""
    score: Callable[[Sequence[HeadAnswer]], dict[str, Any]]
    """From the answers to the questions of a split, but for those that want other heads alone, to numbers by name."""


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

    def missed(self, targets: dict[str, Any]) -> bool:
        """Adds targets that an answer has no prediction for, as the worst that one can be.

        Returns whether that can be said; not of a loss, as here, which is then of what was predicted alone.
        """
        return False

    def quality(self) -> float | None:
        """One number for all that was added, the higher the better, by which the best and the worst answers are found.

        By default the losses' negative sum; None where nothing was added.
        """
        return -sum(self.sums.values()) / self.num_targets if self.num_targets else None

    def compute(self) -> dict[str, float]:
        """Metric by name; empty where nothing was added."""
        return {name: value / self.num_targets for name, value in self.sums.items()} if self.num_targets else {}

    def constant(self) -> dict[str, float]:
        """Of some metrics that are 0 to 1, the higher the better, what the best prediction that is the same for all
        targets added would have.

        A head that has learnt nothing yet reaches about as much. Empty, as here, where that is not known.
        """
        return {}
