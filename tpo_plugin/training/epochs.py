"""The epoch of a training, told to the dataset and to samplers whose order depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset
from transformers import TrainerCallback

from tpo_plugin.errors import TPOError


class Epochs(TrainerCallback):
    """Counts the epochs, from 0, and tells each to `dataset`, and to those within, before it is read."""

    dataset: Any = None
    epoch = 0
    _begun = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A trainer may train several times."""
        self._begun = False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A training that goes on begins in the middle."""
        self.epoch = self.epoch + 1 if self._begun else int(state.epoch or 0)
        self._begun = True
        for part in _parts(self.dataset):
            if hasattr(part, "set_epoch"):
                part.set_epoch(self.epoch)


def _parts(dataset: Any) -> Iterator[Any]:
    """A dataset, and those that torch's `ConcatDataset` and `Subset` have within.

    Raises `TPOError` for a part of a mix: what stands at an index of it is another record in each epoch.
    """
    yield dataset
    within = dataset.datasets if isinstance(dataset, ConcatDataset) else ()
    for part in [dataset.dataset] if isinstance(dataset, Subset) else within:
        if isinstance(dataset, Subset) and getattr(part, "is_mixed", False):
            raise TPOError(
                "the dataset is a Subset (random_split) of a RecordDataset with weights, in which each epoch has other "
                "records at its indices, so that parts of it overlap; split each source, and give RecordDataset the "
                "parts"
            )
        yield from _parts(part)


class OfEpoch(Dataset[Any]):
    """A dataset without its `set_epoch`, for a loader.

    Accelerate would not call it on several ranks, and in a loader that skips what was seen before, with epoch 0.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        if name in ("dataset", "set_epoch") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)


def without_set_epoch(dataset: Any) -> Any:
    """What a loader shall read in place of a dataset; of one that is no stream."""
    has = hasattr(dataset, "set_epoch") and hasattr(dataset, "__getitem__")
    return OfEpoch(dataset) if has and not isinstance(dataset, IterableDataset) else dataset
