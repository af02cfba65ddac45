"""An order of samples in which all ranks have the same media in a forward, so that no vision tower runs idle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

from tpo_plugin.errors import TPOError

if TYPE_CHECKING:
    from tpo_plugin.data import RecordDataset


class SameMedia(Sampler[int]):
    """Shuffled indices, of which each `block` has the same kinds of media: the samples of all ranks in one forward.

    What is missing to full blocks is repeated, at most one block for each kind. The order depends on block, seed and
    epoch.
    """

    def __init__(self, dataset: RecordDataset, block: int, seed: int, epoch: Callable[[], int]) -> None:
        self.dataset, self.block, self.seed, self.epoch = dataset, block, seed, epoch

    def go_on(self, block: int) -> None:
        """Takes the blocks of a training with another number of ranks, whose order it is. Raises `TPOError`."""
        if block % self.block:
            raise TPOError(
                f"the order of samples was drawn in blocks of {block}, which all ranks ran together, and here they run "
                f"{self.block} together; expected a divisor of {block}: start fewer ranks, or as many as before"
            )
        self.block = block

    @property
    def _num_blocks(self) -> int:
        return -(-len(self.dataset) // self.block) + self.dataset.num_media_kinds - 1

    def __len__(self) -> int:
        return self._num_blocks * self.block

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch()])
        kinds = self.dataset.media_kinds()
        blocks: list[np.ndarray] = []
        for kind in np.unique(kinds):
            found = rng.permutation(np.flatnonzero(kinds == kind))
            found = np.resize(found, -(-len(found) // self.block) * self.block)
            blocks += np.split(found, len(found) // self.block)
        order = rng.permutation(len(blocks))
        order = np.resize(order, self._num_blocks)
        return iter(np.concatenate([blocks[i] for i in order]).tolist())
