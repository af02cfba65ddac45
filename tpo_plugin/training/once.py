"""Evaluation on several ranks: every sample is evaluated once, and every rank runs as many batches.

Accelerate fills the last batches of the ranks with the first samples once more. Here the batches are those of one
process, dealt out to the ranks in turn; a rank that has none left runs one again that does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from accelerate.data_loader import BatchSamplerShard, IterableDatasetShard
from torch.utils.data import IterableDataset

AGAIN = "task_again"
"""Key of a batch that does not count, of a dataset without a length."""


@contextmanager
def each_sample_once(loader: Any) -> Iterator[Callable[[int], bool]]:
    """Inside, a loader that accelerate has split over ranks gives each sample to one rank, once.

    Yields whether this rank's batch number n (from 0) counts; that of a dataset without a length says so itself, by
    `AGAIN`. Such a dataset drops the samples of its last, incomplete round where the loader has `drop_last`. A loader
    that is not split stays as it is.
    """
    batches, dataset = getattr(loader, "batch_sampler", None), getattr(loader, "dataset", None)
    if isinstance(batches, BatchSamplerShard):
        with _dealt(batches) as num_own:
            yield lambda n: n < num_own
    elif isinstance(dataset, IterableDatasetShard) and not dataset.drop_last:
        with _marked(loader.base_dataloader, dataset):
            yield lambda n: True
    else:
        yield lambda n: True


@contextmanager
def _dealt(shard: BatchSamplerShard) -> Iterator[int]:
    """Yields the number of this rank's own batches."""
    before, ranks = dict(vars(shard)), shard.num_processes
    batches = list(shard.batch_sampler)
    if shard.split_batches:
        size = shard.batch_size // ranks
        batches = [batch[i : i + size] for batch in batches for i in range(0, len(batch), size)]
    num_own = len(batches[shard.process_index :: ranks])
    # It takes batches of any length, and fills none.
    shard.batch_sampler, shard.batch_size, shard.split_batches, shard.even_batches = batches, None, False, False
    batches += batches[:1] * (-len(batches) % ranks)
    try:
        yield num_own
    finally:
        vars(shard).update(before)


@contextmanager
def _marked(loader: Any, shard: IterableDatasetShard) -> Iterator[None]:
    dataset, collate = shard.dataset, loader.collate_fn
    ranks = 1 if shard.split_batches else shard.num_processes
    shard.dataset, loader.collate_fn = _WholeRounds(dataset, shard.batch_size * ranks), _CollateOnce(collate)
    try:
        yield
    finally:
        shard.dataset, loader.collate_fn = dataset, collate


@dataclass
class _Again:
    sample: Any


class _WholeRounds(IterableDataset[Any]):
    """The samples of a dataset, and the last one again until there are a multiple of `size`."""

    def __init__(self, dataset: Any, size: int) -> None:
        self.dataset, self.size = dataset, size

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.dataset, name)  # accelerate looks for a generator and for `set_epoch`

    def __iter__(self) -> Iterator[Any]:
        number, sample = 0, None
        for number, sample in enumerate(self.dataset, 1):  # noqa: B007
            yield sample
        for _ in range(-number % self.size):
            yield _Again(sample)


class _CollateOnce:
    """Leaves out what stands in a batch again; a batch of nothing else gets one such sample, and a mark."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        own = [sample for sample in samples if not isinstance(sample, _Again)]
        batch = self.collate(own or [samples[0].sample])
        if not own:
            batch[AGAIN] = True
        return batch
