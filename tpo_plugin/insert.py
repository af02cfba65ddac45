"""Task tokens, trigger rows and encoded inputs, put among the host's input embeddings.

T tokens, E width of the input embeddings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.head import collate_inputs
from tpo_plugin.losses import flat_index, float32
from tpo_plugin.positions import Positions

if TYPE_CHECKING:
    from tpo_plugin.model import TaskPreferenceModel

KINDS = ("trigger", "task", "input")


def insert_rows(tpo: TaskPreferenceModel, embeds: Tensor, positions: Positions) -> Tensor | None:
    """The embeddings [..., T, E] with our rows at `positions`, or None where there is nothing to put in."""
    learns = tpo.call is not None and torch.is_grad_enabled() and tpo.training
    parts = [(kind, head, places) for kind in KINDS for head, places in positions[kind].items() if places or learns]
    if not parts:
        return None
    # While training, every row takes part in every step, if with no position: see design section 6.
    source = torch.cat([_rows(tpo, kind, head, places, embeds) for kind, head, places in parts])
    index = flat_index([p for _, _, places in parts for p in places], embeds.shape[-2], embeds.device)
    if (embeds.requires_grad and embeds.is_leaf) or not embeds.is_contiguous():
        # enable_input_require_grads made it a leaf, where writing in place is forbidden
        return embeds.flatten(0, -2).index_put((index,), source).view_as(embeds)
    embeds.view(-1, embeds.shape[-1]).index_put_((index,), source)
    return embeds


def empty_inputs(tpo: TaskPreferenceModel, head: str, device: torch.device) -> dict[str, Any] | None:
    """What the head makes of no tasks, if it takes inputs at all."""
    inputs = collate_inputs(tpo.heads[head], [], [], [])
    return inputs and {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def _rows(tpo: TaskPreferenceModel, kind: str, head: str, places: list[list[int]], embeds: Tensor) -> Tensor:
    if kind != "input":
        return tpo.embeddings[head](kind).to(embeds).expand(len(places), -1)
    token = tpo.tokens[head].input_token
    inputs = (tpo.task_inputs or {}).get(head)
    if inputs is None and not places:
        inputs = empty_inputs(tpo, head, embeds.device)
    if not places and tpo.host.ids != "input_ids":
        inputs = None  # they stand in the other of encoder and decoder
    if token is None or (inputs is None and not places):
        return embeds.new_zeros(0, embeds.shape[-1])
    if inputs is None:
        raise TPOError(
            f"the batch has {len(places)} input token(s) {token!r} of head {head!r}, and task_inputs[{head!r}] is "
            "missing; expected what the head's collate_inputs makes of the given values"
        )
    with float32(embeds.device):
        encoded = tpo.heads[head].encode(inputs)
    if len(encoded) != len(places):
        raise TPOError(
            f"task_inputs[{head!r}] encodes {len(encoded)} given value(s), the batch has {len(places)} input "
            f"token(s) {token!r}; expected one for each, in their order"
        )
    if encoded.shape[-1] != embeds.shape[-1]:
        if places:
            raise HostError(
                f"head {head!r} encodes given values to {encoded.shape[-1]} numbers, the width of the last "
                f"hidden state; the embeddings of {type(tpo.model).__name__} have {embeds.shape[-1]}, so it takes "
                f"no input tokens {token!r}"
            )
        return embeds.new_zeros(0, embeds.shape[-1]) + encoded.sum().to(embeds)
    return encoded.to(embeds)
