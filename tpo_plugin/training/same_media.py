"""An order of samples in which all ranks have the same media in a forward, so that no vision tower runs idle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from tpo_plugin.data import RecordDataset


class SameMedia(Sampler[int]):
    """Shuffled indices, of which each `block` has the same kinds of media: the samples of all ranks in one forward.

    What is missing to full blocks is repeated, at most one block for each kind. The order depends on seed and epoch.
    """

    def __init__(self, dataset: RecordDataset, block: int, seed: int, epoch: Callable[[], int]) -> None:
        self.dataset, self.block, self.seed, self.epoch = dataset, block, seed, epoch
        self.num_blocks = -(-len(dataset) // block) + dataset.num_media_kinds - 1

    def __len__(self) -> int:
        return self.num_blocks * self.block

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch()])
        kinds = self.dataset.media_kinds()
        blocks: list[np.ndarray] = []
        for kind in np.unique(kinds):
            found = rng.permutation(np.flatnonzero(kinds == kind))
            found = np.resize(found, -(-len(found) // self.block) * self.block)
            blocks += np.split(found, len(found) // self.block)
        order = rng.permutation(len(blocks))
        order = np.resize(order, self.num_blocks)
        return iter(np.concatenate([blocks[i] for i in order]).tolist())
