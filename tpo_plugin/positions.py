"""Where the tokens of heads stand in a batch, and how many targets it has of each kind.

Suffixes: B batch, T sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor

from tpo_plugin.tokens import KINDS, HeadTokens

IGNORE_INDEX = -100
"""Label of a position that is not learned, as everywhere in transformers."""

Place = tuple[int, int]
"""(batch row, column) of a token."""

TextGroups = list[tuple[int, list[int]]]
"""(batch row, columns of the text tokens) of each question, in order."""


_Numbers = TypeVar("_Numbers")


class _Anywhere:
    """Plain numbers: what moves a batch, as Lightning does, may ask them to move too."""

    def to(self: _Numbers, *args: Any, **kwargs: Any) -> _Numbers:
        """Itself."""
        return self


@dataclass(frozen=True)
class Positions(_Anywhere):
    """Where the tokens stand in a batch [B, T], as plain numbers: each list is in the order (row, column)."""

    shape: tuple[int, int]
    """(B, T)."""
    trigger: Mapping[str, Sequence[Place]]
    """Of each head's trigger tokens."""
    task: Mapping[str, Sequence[Place]]
    """Of each head's task tokens."""
    input: Mapping[str, Sequence[Place]]
    """Of each head's input tokens."""
    labels: Sequence[Place] = ()
    """Where a trigger is the label."""
    text: TextGroups | None = None
    """Of each question's text, for heads that look at it; None where nobody said."""

    @classmethod
    def of_kinds(
        cls, shape: tuple[int, int], found: Mapping[str, Mapping[str, Sequence[Place]]], labels: Sequence[Place] = ()
    ) -> Positions:
        """From places by kind and head."""
        return cls(shape, trigger=found["trigger"], task=found["task"], input=found["input"], labels=labels)

    @classmethod
    def none(cls, shape: tuple[int, int], heads: Sequence[str]) -> Positions:
        """Those of a batch without any token of a head."""
        return cls.of_kinds(shape, {kind: dict.fromkeys(heads, ()) for kind in KINDS})

    def of(self, kind: str) -> Mapping[str, Sequence[Place]]:
        """Places by head, of `kind` "trigger", "task" or "input"."""
        return {"trigger": self.trigger, "task": self.task, "input": self.input}[kind]

    def by_token(self) -> Iterator[tuple[str, str, Sequence[Place]]]:
        """(kind, head, places) of every token, in a fixed order."""
        for kind in KINDS:
            for head, places in self.of(kind).items():
                yield kind, head, places

    @property
    def has_tasks(self) -> bool:
        """Whether any task token stands in the batch."""
        return any(self.task.values())


@dataclass(frozen=True)
class Counts(_Anywhere):
    """Numbers of targets by which losses are divided: of a micro-batch, or of a whole accumulated global batch."""

    mllm: int
    """Labels of ordinary tokens."""
    assign: int
    """Labels that are triggers."""
    heads: Mapping[str, int] = field(default_factory=dict)
    """Targets of each head."""
    scale: int = 1
    """What a trainer will divide the loss by: the loss is multiplied by it."""
    measure: bool = False
    """Whether false triggers are counted in this step, which costs an argmax over all logits."""
    logits: bool = False
    """Whether the trainer may read the host's logits, so that all of them are to be computed."""
    retain: int = 0
    """Labels of rows without a token of a head."""

    def of(self, kind: str) -> int:
        """The number for a loss: "mllm", "assign", "retain", or a head's name."""
        own = {"mllm": self.mllm, "assign": self.assign, "retain": self.retain}
        return own.get(kind, self.heads.get(kind, 0))


def token_positions(
    input_ids: Tensor, labels: Tensor | None, tokens: Mapping[str, HeadTokens], label_shift: int = 1
) -> Positions:
    """Finds the tokens in a batch [B, T]. Called at collation, on the CPU, it saves a device synchronisation a step."""
    ids = {i: (kind, head) for head, t in tokens.items() for kind, i in t.by_kind().items()}
    found: dict[str, dict[str, list[Place]]] = {kind: {head: [] for head in tokens} for kind in KINDS}
    wanted = torch.tensor(list(ids), device=input_ids.device)
    where = torch.isin(input_ids, wanted).nonzero()
    values = input_ids[where[:, 0], where[:, 1]]
    for (row, column), value in zip(where.tolist(), values.tolist(), strict=True):
        kind, head = ids[value]
        found[kind][head].append((row, column))
    labelled: list[Place] = []
    if labels is not None:
        triggers = torch.tensor([t.trigger_id for t in tokens.values()], device=labels.device)
        # Where labels stand one column behind, column 0 has no position before it that could predict it.
        places = torch.isin(labels, triggers).nonzero().tolist()
        labelled = [(row, column) for row, column in places if column >= label_shift]
    num_rows, length = input_ids.shape
    return Positions.of_kinds((num_rows, length), found, labelled)


def column_positions(ids: Sequence[int], tokens: Mapping[str, HeadTokens]) -> Positions:
    """As `token_positions`, for one column [B, 1] whose ids are known on the CPU."""
    kinds = {i: (kind, head) for head, t in tokens.items() for kind, i in t.by_kind().items()}
    found: dict[str, dict[str, list[Place]]] = {kind: {head: [] for head in tokens} for kind in KINDS}
    for row, token_id in enumerate(ids):
        if token_id in kinds:
            kind, head = kinds[token_id]
            found[kind][head].append((row, 0))
    return Positions.of_kinds((len(ids), 1), found)


def split_labels(labels: Tensor, tokens: Mapping[str, HeadTokens]) -> Tensor:
    """The host's labels: a copy of `labels` [B, T] with triggers ignored, and task and input tokens, which no model
    says: of labels that are the `input_ids` whole, they are left."""
    ids = [i for t in tokens.values() for i in (t.trigger_id, t.task_id, t.input_id) if i is not None]
    return labels.masked_fill(torch.isin(labels, torch.tensor(ids).to(labels.device, non_blocking=True)), IGNORE_INDEX)


def retained_labels(labels: Tensor, positions: Positions) -> Tensor:
    """A copy of `labels` [B, T] with the rows ignored in which a token of a head stands: conversation remains."""
    rows = {row for *_, places in positions.by_token() for row, _ in places}
    return labels.index_fill(0, torch.tensor(sorted(rows), dtype=torch.int64).to(labels.device), IGNORE_INDEX)


def count_ordinary(labels: Tensor, tokens: Mapping[str, HeadTokens], label_shift: int = 1) -> Tensor:
    """Number of labels that the host scores after its shift: neither ignored nor a head's tokens; on the device."""
    return (split_labels(labels, tokens)[:, label_shift:] != IGNORE_INDEX).sum()


def count_targets(
    input_ids: Tensor,
    labels: Tensor | None,
    tokens: Mapping[str, HeadTokens],
    positions: Positions | None = None,
    label_shift: int = 1,
) -> Counts:
    """Number of targets of each kind in a micro-batch; a head's are its task tokens.

    "mllm" counts columns `label_shift` and on; `input_ids` are an encoder-decoder's `decoder_input_ids`, whose
    `label_shift` is 0. `positions` are what `token_positions` finds in the batch, where the collator gave them.
    """
    found = positions or token_positions(input_ids, labels, tokens, label_shift)
    ordinary = 0 if labels is None else int(count_ordinary(labels, tokens, label_shift))
    retained = labels is not None and (retained_labels(labels, found)[:, label_shift:] != IGNORE_INDEX).sum()
    of_heads = {head: len(places) for head, places in found.task.items()}
    return Counts(ordinary, len(found.labels), of_heads, retain=int(retained))


def flat_index(places: Sequence[Place], length: int, device: torch.device) -> Tensor:
    """Places in a batch [B, length] as an index into its flattened rows."""
    flat = [row * length + column for row, column in places]
    return torch.tensor(flat, dtype=torch.int64).to(device, non_blocking=True)


def text_groups(input_ids: Tensor, labels: Tensor | None, special: Sequence[int]) -> TextGroups:
    """The questions of a batch [B, T]: ordinary tokens without a label, a group for each stretch between answers.

    `special` are ids that are no text. Without labels all ordinary tokens of a row are one group. Called at collation,
    on the CPU.
    """
    ids = input_ids.cpu()
    labelled = torch.zeros_like(ids, dtype=torch.bool) if labels is None else (labels != IGNORE_INDEX).cpu()
    ordinary = ~torch.isin(ids, torch.tensor(list(special), dtype=ids.dtype)) & (ids >= 0) & ~labelled
    rows, columns = ordinary.nonzero(as_tuple=True)
    answers = labelled.cumsum(-1)[rows, columns]
    tokens = zip(rows.tolist(), answers.tolist(), columns.tolist(), strict=True)
    return [(row, [c for _, _, c in group]) for (row, _), group in groupby(tokens, key=lambda t: t[:2])]
