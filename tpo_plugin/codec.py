"""From a record's tasks to tensors: what of a head needs no weights and no host. No torch until tensors are made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

from tpo_plugin.checks import check_inside
from tpo_plugin.declarations import check_fields, check_names, check_parameters
from tpo_plugin.errors import TPOError, did_you_mean
from tpo_plugin.plugins import HeadSpec

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

CORE_FIELDS = ("head", "time")
"""Fields of a task that the core knows for every head: whose it is, and the second of the video that it belongs to."""


class TaskCodec:
    """What reads, checks and counts a head's tasks, and makes tensors of them.

    Every `TaskHead` is one, so a small head is a single class. A head whose `collate_*` or `check_*` methods would need
    its network, or is slow to import, has a codec apart: `register(..., codec="module:Class")` and
    `class MyHead(MyCodec, TaskHead)`. Worker processes, and `tpo check`, get the codec alone.
    """

    fields: Collection[str] | None = None
    """Names of a task's fields besides "head" and "time"; a mapping may say what each holds. Another field in a record
    is an error. None, where a head does not say, accepts any."""

    config: Any
    """The head's configuration. `TaskCodec.__init__` sets it; a head does so itself."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def check_task(self, task: dict[str, Any]) -> None:
        """Raises `ValueError` with the field and what is wrong with it when a record's task cannot be used."""

    def resolve(self, task: dict[str, Any], folder: Path) -> dict[str, Any]:
        """The task with paths that are relative to the records' media folder made absolute; by default as it is.

        A head whose tasks have paths also says which they are: `named_files`.
        """
        return task

    def named_files(self, task: dict[str, Any]) -> Collection[str | Path]:
        """The files that a resolved task names, none by default. With `Records(confine=True)` they must lie in the
        records' media folder."""
        return ()

    def check_sample(self, tasks: list[dict[str, Any]], sample: Any) -> None:
        """Raises `MediaError` where a record's media, once read (`tpo_plugin.data.Sample`), cannot serve this head's
        tasks: it is then skipped and counted, as one whose media cannot be read.
        """

    def boxes_of(self, task: dict[str, Any]) -> list[Any]:
        """The boxes [x1, y1, x2, y2] (0 to 1) in a checked task; `tpo check` says where many of a set look wrong."""
        return []

    def draw_tasks(self, tasks: list[dict[str, Any]], given: list[dict[str, Any]], sample: Any) -> list[Image]:
        """Pictures of what a record's tasks to predict, and those that its user gives, say of its media.

        They are for `tpo check --pictures`. `sample` is a `tpo_plugin.Sample`. An empty list, as here, where the head
        does not draw. Raises `MediaError`.
        """
        return []

    def num_tokens(self, task: dict[str, Any]) -> int:
        """How many task tokens (or, in a human turn, input tokens) a record's task takes; for example one per box."""
        return 1

    def collate_targets(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        """From the tasks of a batch, in the order of their task tokens, to `task_targets[head]`.

        By default every field of the tasks except "head" and "time" becomes one float32 tensor, first dimension N.
        """
        import torch

        names = [key for key in (tasks[0] if tasks else {}) if key not in CORE_FIELDS]
        for task in tasks:
            if set(task) - set(CORE_FIELDS) != set(names):
                raise TPOError(
                    f"{type(self).__name__}: one task has the fields {sorted(names)}, another "
                    f"{sorted(set(task) - set(CORE_FIELDS))}; "
                    "expected the same in all, or a collate_targets of the head's own"
                )
        return {key: torch.tensor([task[key] for task in tasks], dtype=torch.float32) for key in names}

    def collate_truth(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        """What a generated answer is measured by: by default the targets of training. A head whose answers cover more
        than it trains on, as all frames of a video, has its own."""
        return self.collate_targets(tasks)

    def collate_inputs(self, tasks: list[dict[str, Any]], given: list[dict[str, Any]]) -> dict[str, Any] | None:
        """From the tasks to predict and those that the user gives (human turns) to `task_inputs[head]`, or None.

        A head that looks at the media declares a third parameter `samples`, and gets the `tpo_plugin.data.Sample` of
        each row of the batch: for training where the batch has a task of it, for generation always (without tasks).
        """
        return None

    def count_targets(self, targets: dict[str, Any] | None) -> int:
        """Number of task tokens that `targets` serve: by default the length of its first entry."""
        return len(next(iter(targets.values()))) if targets else 0

    def num_targets(self, targets: dict[str, Any] | None) -> int:
        """What `loss` is to divide by, for these targets: by default one for each task token. A head with several
        tokens for a task may count tasks."""
        return self.count_targets(targets)


class HeadCodec:
    """The codec of a head that has none apart: the head without weights and submodules, `bare`.

    Raises `TPOError` where one of its methods would need them.
    """

    def __init__(self, name: str, bare: TaskCodec) -> None:
        self._name, self._bare = name, bare
        self.kind = type(bare)
        """The head's class."""

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        value = getattr(self._bare, attribute)
        return self._guarded(value) if inspect.ismethod(value) else value

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except (AttributeError, StopIteration) as error:  # the latter: next(self.parameters())
                if isinstance(error, AttributeError) and error.obj is not self._bare:
                    raise
                raise TPOError(
                    f"head {self._name!r}: {method.__name__} needs the head's weights or modules ({error}), which "
                    "nothing that reads records has; move such methods to a tpo_plugin.TaskCodec, made of the "
                    "configuration alone, and register it: codec="
                ) from error

        return call


Codec = TaskCodec | HeadCodec
"""What reads the records of a head."""


def registered_codec(spec: HeadSpec, config: Any) -> TaskCodec | None:
    """The codec that a head is registered with, or None where the head is its own. Raises `TPOError` for a bad one."""
    cls = spec.codec_class()
    if cls is None:
        return None
    where = f"codec of head {spec.name!r} ({spec.plugin})"
    if not (isinstance(cls, type) and issubclass(cls, TaskCodec)):
        raise TPOError(f"{where} is {cls!r}; expected a subclass of tpo_plugin.TaskCodec")
    check_parameters(cls.__init__, ("config",), (), f"{where}: __init__")
    check_codec(cls, where)
    check_names(cls, TaskCodec, where)
    return cls(config)


def check_codec(cls: type[TaskCodec], where: str) -> None:
    """Raises `TPOError` where `cls` declares fields, or parameters of `collate_inputs`, that the core cannot know."""
    check_fields(cls.fields, where)
    check_parameters(cls.collate_inputs, ("tasks", "given"), ("samples",), f"{where}: collate_inputs")


def check_task_fields(codec: Codec, head: str, task: Mapping[str, Any]) -> None:
    """Raises `ValueError` for a field that head `head` does not name. A head that names none accepts any."""
    if codec.fields is None:
        return
    for key in task:
        if key not in codec.fields and key not in CORE_FIELDS:
            raise ValueError(f"{key} is no field of head {head!r}{did_you_mean(key, [*codec.fields, *CORE_FIELDS])}")


def check_files(codec: Codec, head: str, task: dict[str, Any], folder: Path) -> None:
    """Raises `ValueError` for a resolved task that names a file outside of a folder, or whose head does not say."""
    cls = codec.kind if isinstance(codec, HeadCodec) else type(codec)
    if cls.resolve is not TaskCodec.resolve and cls.named_files is TaskCodec.named_files:
        raise ValueError(
            f"head {head!r} resolves paths and does not say which, so its records cannot be confined to a folder; "
            "expected a method named_files of its codec"
        )
    for path in codec.named_files(task):
        check_inside("a file of the task", path, folder)


def collate_inputs(codec: Codec, tasks: list[Any], given: list[Any], samples: Sequence[Any]) -> Any:
    """`codec.collate_inputs`, with the samples if it asks for them."""
    return codec.collate_inputs(tasks, given, **({"samples": samples} if asks_for_samples(codec) else {}))


def asks_for_samples(codec: Codec) -> bool:
    """Whether its `collate_inputs` declares the parameter `samples`."""
    return "samples" in inspect.signature(codec.collate_inputs).parameters
