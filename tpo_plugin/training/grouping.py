"""What a trainer asks of a dataset, and this package's have no answer to: lengths to group by, and TRL's own type."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from tpo_plugin.errors import TPOError
from tpo_plugin.training.epochs import OfEpoch

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


def strategy_of(args: Any) -> str:
    """How training samples are ordered: `train_sampling_strategy`, or `group_by_length` before transformers 5."""
    grouped = getattr(args, "group_by_length", False)
    return str(getattr(args, "train_sampling_strategy", "group_by_length" if grouped else "random"))


class GroupingMixin(_Trainer):
    """Groups samples by the `lengths` of their dataset, where `TrainingArguments` ask for it.

    A trainer with a sampler of its own keeps that.
    """

    epochs: Any
    _batch_size: int

    def _get_train_sampler(self, *args: Any) -> Any:
        theirs = super()._get_train_sampler
        dataset = args[0] if args and args[0] is not None else self.train_dataset
        if theirs.__func__ is not transformers.Trainer._get_train_sampler or not _needs_lengths(self.args, dataset):
            return theirs(*args)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return _GroupedByLength(dataset.lengths, self._batch_size, seed, lambda: self.epochs.epoch)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        theirs = super()._get_eval_sampler
        if theirs.__func__ is not transformers.Trainer._get_eval_sampler or not _needs_lengths(self.args, eval_dataset):
            return theirs(eval_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        generator = torch.Generator().manual_seed(seed)
        return LengthGroupedSampler(self.args.eval_batch_size, lengths=eval_dataset.lengths, generator=generator)


class _GroupedByLength(Sampler[int]):
    """transformers' order, drawn from seed and epoch alone: a run that goes on finds it again, on other ranks too."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        drawn = np.random.SeedSequence([self.seed, self.epoch()]).generate_state(1)
        generator = torch.Generator().manual_seed(int(drawn[0]))
        return iter(LengthGroupedSampler(self.batch_size, lengths=self.lengths, generator=generator))


def _needs_lengths(args: Any, dataset: Any) -> bool:
    """Whether transformers would look for lengths that only the dataset can state.

    Raises `TPOError` where it does not state them.
    """
    strategy = strategy_of(args)
    if strategy not in ("group_by_length", "batch_rebalance") or not hasattr(dataset, "__len__") or not len(dataset):
        return False
    if args.length_column_name in (getattr(dataset, "column_names", None) or ()):
        return False
    if hasattr(dataset, "lengths") and strategy == "group_by_length":
        return True
    first = dataset[0]
    if isinstance(first, Mapping) and "input_ids" in first:
        return False
    name = type(dataset.dataset if isinstance(dataset, OfEpoch) else dataset).__name__
    if hasattr(dataset, "lengths"):
        raise TPOError(f"{strategy} counts tokens, which {name} does not have before collation; use group_by_length")
    raise TPOError(
        f"{strategy} needs the length of every sample, and the samples of {name} are {type(first).__name__} without "
        f"input_ids; give the dataset a sequence `lengths`, or a column {args.length_column_name!r}"
    )


def with_own_datasets(make: Any, trainer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Makes a trainer of TRL, `make(*args, **kwargs)`, on datasets that are no `datasets.Dataset`, which it refuses.

    It looks at a dataset of one row in their place, as if that were tokenised; after it they are the trainer's.
    """
    datasets = importlib.import_module("datasets")  # which TRL itself needs
    given = {**dict(zip(inspect.signature(make).parameters, args, strict=False)), **kwargs}
    row = datasets.Dataset.from_list([{"input_ids": [0, 0], "labels": [0, 0]}])

    def is_own(dataset: Any) -> bool:
        return isinstance(dataset, Dataset) and not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset))

    own: dict[str, Any] = {}
    for name in ("train_dataset", "eval_dataset"):
        dataset = given.get(name)
        if is_own(dataset):
            own[name], given[name] = dataset, row
        elif isinstance(dataset, Mapping) and any(map(is_own, dataset.values())):
            own[name], given[name] = dataset, dict.fromkeys(dataset, row)
    if not own:
        make(*args, **kwargs)
        return
    make(**given)
    for name, dataset in own.items():
        setattr(trainer, name, dataset)
    trainer._skip_prepare_dataset = True  # what `evaluate` is given is left as it is too
