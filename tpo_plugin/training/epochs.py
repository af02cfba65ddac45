"""The epoch of a training, told to the dataset and to samplers whose order depends on it."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset, IterableDataset
from transformers import TrainerCallback


class Epochs(TrainerCallback):
    """Counts the epochs, from 0, and tells each to `dataset` before it is read, if it has `set_epoch`."""

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
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.epoch)


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
