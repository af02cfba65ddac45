"""The output embedding at labelled positions alone: the host scores itself on the rows that have a label.

Of multimodal training most positions are media or prompt. The output embedding's input [B, T, D] is repacked to
[1, K + shift, D], the rows that predict a label and, where the host shifts, a row of zeros behind them; its labels are
repacked alike. So its own shift, scaling, caps, auxiliary losses and `num_items_in_batch` run as they are written.

Suffixes: B batch, T sequence, D hidden size, K labelled positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tpo_plugin.errors import HostError
from tpo_plugin.positions import IGNORE_INDEX, split_labels
from tpo_plugin.tokens import HeadTokens


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


class Retained:
    """Of the rows of conversation the logits of the host without LoRA, and those of the model."""

    def __init__(self, rows: SupervisedRows, host_RV: Tensor) -> None:
        self.rows, self.host_RV = rows, host_RV
        self.logits_RV: Tensor | None = None
        """The model's; None until its output embedding ran."""

    def take(self, logits: Tensor, narrowed: SupervisedRows | None) -> None:
        """Takes them out of what the output embedding gave: [B, T, V], or [1, K + shift, V] of the `narrowed` rows."""
        if self.logits_RV is not None:
            return  # the output embedding runs once more, at the triggers
        index = self.rows.index_K
        if narrowed is not None:
            index = torch.isin(narrowed.index_K, index).nonzero()[:, 0]
        self.logits_RV = logits.flatten(0, 1).index_select(0, index.to(logits.device))


class StepLabels:
    """The labels of one forward, and the rows that its output embedding gets where it is narrowed."""

    def __init__(self, whole_BT: Tensor, shift: int, *, scored: bool = True, assigned: bool = True) -> None:
        self.whole = whole_BT
        """[B, T], spliced where the host did so."""
        self.shift = shift
        self.scored, self.assigned = scored, assigned
        """Whether the host's own loss is wanted, and that of the triggers."""
        self.narrows = False
        """Whether the output embedding is to run at labelled positions alone."""
        self.rows: SupervisedRows | None = None
        """Set when the host got its labels."""
        self.retained: Retained | None = None
        """What the loss "retain" is made of, where it is wanted."""

    def of_host(self, tokens: Mapping[str, HeadTokens]) -> Tensor | None:
        """Those that the host scores: without triggers, and packed where its output embedding is narrowed.

        Narrowed, they are only those whose loss is wanted, and None where the host's own is not.
        """
        ordinary = split_labels(self.whole, tokens)
        if not self.narrows:
            return ordinary
        is_trigger = ordinary != self.whole
        unwanted = (is_trigger & (not self.assigned)) | (~is_trigger & (not self.scored))
        self.rows = SupervisedRows.of(self.whole.masked_fill(unwanted, IGNORE_INDEX), self.shift)
        return split_labels(self.rows.labels, tokens) if self.scored else None
