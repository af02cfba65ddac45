"""Where the tokens of heads stand in a batch, and how many targets it has of each kind.

Suffixes: B batch, T sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tpo_plugin.errors import HostError
from tpo_plugin.tokens import HeadTokens

Positions = dict[str, Any]
"""Where the tokens stand in a batch, as plain lists: {"shape": [B, T], "trigger" | "task" | "input": {head:
[[row, column], …]}, "labels": [[row, column], …] of the labelled triggers}, each in the order (row, column)."""


def token_positions(
    input_ids: Tensor, labels: Tensor | None, tokens: Mapping[str, HeadTokens], label_shift: int = 1
) -> Positions:
    """Finds the tokens in a batch [B, T]. Called at collation, on the CPU, it saves a device synchronisation a step."""
    ids = {i: (kind, head) for head, t in tokens.items() for kind, i in t.by_kind().items()}
    found: Positions = {"shape": list(input_ids.shape), "labels": []}
    for kind in ("trigger", "task", "input"):
        found[kind] = {head: [] for head in tokens}
    wanted = torch.tensor(list(ids), device=input_ids.device)
    where = torch.isin(input_ids, wanted).nonzero()
    values = input_ids[where[:, 0], where[:, 1]]
    for (row, column), value in zip(where.tolist(), values.tolist(), strict=True):
        kind, head = ids[value]
        found[kind][head].append([row, column])
    if labels is not None:
        triggers = torch.tensor([t.trigger_id for t in tokens.values()], device=labels.device)
        # Where labels stand one column behind, column 0 has no position before it that could predict it.
        places = torch.isin(labels, triggers).nonzero().tolist()
        found["labels"] = [[row, column] for row, column in places if column >= label_shift]
    return found


def decoder_ids(model: Any, labels: Tensor, tokens: Mapping[str, HeadTokens]) -> Tensor:
    """Input of an encoder-decoder's decoder, made of its labels: the token behind a trigger is its task token."""
    ids = labels.clone()
    for head in tokens.values():
        follows = (labels[:, :-1] == head.trigger_id) & (labels[:, 1:] < 0)
        ids[:, 1:].masked_fill_(follows, head.task_id)
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=ids)
    start, pad = (_config_value(model, name) for name in ("decoder_start_token_id", "pad_token_id"))
    if start is None or pad is None:
        raise HostError(
            f"{type(model).__name__} does not say how its decoder's input is made of labels (decoder_start_token_id is "
            f"{start}, pad_token_id {pad}); give decoder_input_ids"
        )
    shifted = torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], 1)
    return shifted.masked_fill(shifted < 0, pad)


def _config_value(model: Any, name: str) -> int | None:
    configs = [model.config, model.config.get_text_config(decoder=True), getattr(model, "generation_config", None)]
    return next((v for v in (getattr(c, name, None) for c in configs) if v is not None), None)
