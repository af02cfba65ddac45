"""The output embedding at labelled positions alone: the host scores itself on the rows that have a label.

Of multimodal training most positions are media or prompt. The output embedding's input [B, T, D] is repacked to
[1, K + shift, D], the rows that predict a label and, where the host shifts, a row of zeros behind them; its labels are
repacked alike. So its own shift, scaling, caps, auxiliary losses and `num_items_in_batch` run as they are written.

Suffixes: B batch, T sequence, D hidden size, K labelled positions, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tpo_plugin.errors import HostError
from tpo_plugin.positions import IGNORE_INDEX

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupervisedRows:
    """The rows of one forward that the output embedding gets."""

    index_K: Tensor
    """Of the rows that predict a label, into the flattened [B * T]."""
    labels: Tensor
    """Their labels, [1, shift + K]: of row i the one in column shift + i."""
    shape: tuple[int, ...]
    """(B, T)."""

    @classmethod
    def of(cls, labels_BT: Tensor, shift: int) -> SupervisedRows:
        """Those of a batch whose labels stand `shift` columns behind the positions that predict them."""
        row, column = (labels_BT[:, shift:] != IGNORE_INDEX).nonzero(as_tuple=True)
        packed = F.pad(labels_BT[row, column + shift], (shift, 0), value=IGNORE_INDEX)
        return cls(row * labels_BT.shape[1] + column, packed[None], tuple(labels_BT.shape))

    @property
    def labels_K(self) -> Tensor:
        """The label of each row."""
        return self.labels[0, self.labels.shape[1] - len(self.index_K) :]

    def narrowed(self, states: Tensor) -> Tensor:
        """`states` [B, T, D] at these rows, [1, K + shift, D]. Raises `HostError` for states of another shape."""
        if states.dim() != 3 or tuple(states.shape[:2]) != self.shape:
            raise HostError(
                f"the output embedding got {list(states.shape)} for labels of {list(self.shape)}, so it cannot run at "
                "labelled positions alone; set supervised_logits to false in the TPOConfig"
            )
        rows = states.flatten(0, 1).index_select(0, self.index_K.to(states.device))
        return F.pad(rows, (0, 0, 0, self.labels.shape[1] - len(self.index_K)))[None]

    def triggers(self, trigger_ids: Tensor, number: int) -> Tensor:
        """Which of the K rows have a trigger for a label, `number` of them; nothing is read off the device."""
        found = torch.isin(self.labels_K, trigger_ids.to(self.labels.device))
        return found.to(torch.int8).argsort(descending=True, stable=True)[:number]


class SupervisedLogits:
    """Whether one host may be trained so, found by its first batch with each set of arguments: its loss both ways."""

    def __init__(self) -> None:
        self._reasons: dict[frozenset[str], str] = {}
        """By the names of a forward's arguments why not, "" where it may."""

    def serves(self, wanted: Literal["auto", True], names: frozenset[str], loss_of: Callable[[bool], Tensor]) -> bool:
        """Whether a forward with arguments of these `names` is to run so.

        `loss_of` gives the host's own loss on the batch, without gradient: of all positions, or (True) of the labelled
        ones alone. Raises `HostError` with the reason where it may not and `wanted` is True.
        """
        if names not in self._reasons:
            reason = _difference(loss_of)
            if reason is None:
                return False
            self._reasons[names] = reason
            if reason and wanted == "auto":
                logger.warning("supervised_logits: all logits are computed, for %s", reason)
        reason = self._reasons[names]
        if reason and wanted is True:
            raise HostError(f"supervised_logits is true, and {reason}; set it to auto or false")
        return not reason


def _difference(loss_of: Callable[[bool], Tensor]) -> str | None:
    """Why the two losses differ, "" where they do not, None where the batch does not tell."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        whole = loss_of(False)
    if not torch.isfinite(whole):
        return None  # a batch without a label of the host
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            narrow = loss_of(True)
    except Exception as error:
        return f"the host cannot be scored at labelled positions alone ({type(error).__name__}: {error})"
    tolerance = 1e-5 if narrow.dtype == whole.dtype == torch.float32 else 1e-3
    if torch.isclose(narrow.float(), whole.float(), rtol=tolerance, atol=tolerance):
        return ""
    return f"the host's loss at labelled positions alone is {narrow.item():.6g}, and {whole.item():.6g} of all"
