"""`Tasks`: what TPO owns, trains and saves, for any host: heads, token rows, tokens, and their configuration.

Suffixes: B batch, T sequence, D hidden size, E width of the input embeddings, N task tokens, K heads, V vocabulary.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpo_plugin import sharding
from tpo_plugin.codec import Codec, collate_inputs
from tpo_plugin.config import TPOConfig
from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.head import TaskHead
from tpo_plugin.positions import Place, Positions, flat_index
from tpo_plugin.seen import HostFeatures, Seen
from tpo_plugin.tokens import HeadTokens, TokenRows
from tpo_plugin.vocabulary import Growth


class TriggerLogits(nn.Module):
    """Which columns of the host's logits are the triggers', and which belong to no token."""

    def __init__(self, trigger_ids: Sequence[int]) -> None:
        super().__init__()
        self.growth: Growth | None = None
        """Rows that the host's vocabulary got, or None; set by `grow`."""
        self.triggers: Tensor
        self.register_buffer("triggers", torch.tensor(trigger_ids), persistent=False)
        self.unused: Tensor
        self.register_buffer("unused", torch.zeros(0, dtype=torch.int64), persistent=False)

    def grow(self, growth: Growth | None) -> None:
        """Tells which rows of the vocabulary were added; those that no trigger owns get no probability."""
        self.growth = growth
        added = range(growth.old_size, growth.new_size) if growth else ()
        unused = sorted(set(added) - set(self.triggers.tolist()))
        self.unused = torch.tensor(unused, dtype=torch.int64, device=self.unused.device)

    def add_to(self, logits: Tensor, inputs: Tensor, rows_KD: Tensor) -> None:
        """Adds the trained part of the triggers' output rows, in place: a Linear saves nothing of its output.

        Not a forward: an engine that wraps a module's inputs (ZeRO-3) would hand it copies for autograd.
        """
        if len(self.unused):
            logits.index_fill_(-1, self.unused.to(logits.device), torch.finfo(logits.dtype).min)
        added = F.linear(inputs, rows_KD.to(inputs))
        logits.index_add_(-1, self.triggers.to(logits.device), added.to(logits.dtype))


class Tasks(nn.Module):
    """All heads and task tokens together. Its parameters stay float32 when the host is cast."""

    def __init__(
        self,
        heads: dict[str, TaskHead],
        rows: dict[str, TokenRows],
        tokens: dict[str, HeadTokens],
        config: TPOConfig,
        tokenizer: Any,
        processor: Any = None,
        *,
        codecs: dict[str, Codec],
        special_ids: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)
        self.codecs = codecs
        """What reads the records of each head, without weights."""
        self.embeddings = nn.ModuleDict(rows)
        self.tokens = tokens
        self.config = config
        self.tokenizer, self.processor = tokenizer, processor
        self.trainable = frozenset(name for name, p in self.named_parameters() if p.requires_grad)
        """Names of the parameters that may train at all; a head's frozen encoder is not among them."""
        self.trigger_logits = TriggerLogits([tokens[name].trigger_id for name in heads])
        self.special_ids = special_ids if any("seen" in _parameters(head) for head in heads.values()) else None
        """Ids that are no text, where a head looks at the host's states of the text; None where none does."""

    @property
    def token_ids(self) -> dict[str, tuple[int, int]]:
        """(trigger id, task token id) by head."""
        return {name: (t.trigger_id, t.task_id) for name, t in self.tokens.items()}

    @property
    def num_ids(self) -> int:
        """Rows that a vocabulary with all the tokens has at least."""
        return 1 + max(i for tokens in self.tokens.values() for i in tokens.by_kind().values())

    @property
    def growth(self) -> Growth | None:
        """Rows that the host's vocabulary got for the tokens, or None where it had spare ones."""
        return self.trigger_logits.growth

    @property
    def is_split(self) -> bool:
        """Whether a rank holds a part of each parameter (ZeRO-3), so that all ranks have to run the same modules."""
        return bool(sharding.split(self.embeddings.parameters()))

    def check_not_offloaded(self) -> None:
        """Raises `TPOError` where the parameters are elsewhere between forwards, to be neither trained nor saved."""
        if next(self.embeddings.parameters()).is_meta:
            raise TPOError(
                "model.tpo was offloaded, and accelerate does not give back what it offloads, to train or to save it; "
                "offload the host first and call apply_tpo second"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Tasks:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)

    # -- into the host -------------------------------------------------------------------------------------------------

    def insert(
        self,
        embeds: Tensor,
        positions: Positions,
        task_inputs: Mapping[str, Any],
        *,
        learns: bool,
        given_here: bool,
        copies: int = 1,
    ) -> Tensor | None:
        """The input embeddings [..., T, E] with our rows at `positions`, or None where there is nothing to put in.

        While it `learns`, and where parameters are split, every row takes part, if with no place. `given_here` says
        whether these are the embeddings among which given values stand when no place says so. `copies` successive rows
        have the values of one sample.
        """
        if learns and not embeds.is_meta:
            self.check_not_offloaded()
        all_take_part = learns or self.is_split
        parts = [(kind, name, places) for kind, name, places in positions.by_token() if places or all_take_part]
        if not parts:
            return None
        given = {name: value for name, value in task_inputs.items() if learns or positions.input[name]}
        rows = [
            self._encoded(name, places, given.get(name), embeds, given_here=given_here, copies=copies)
            if kind == "input"
            else self.embeddings[name](kind).to(embeds).expand(len(places), -1)
            for kind, name, places in parts
        ]
        source = torch.cat(rows)
        index = flat_index([p for *_, places in parts for p in places], embeds.shape[-2], embeds.device)
        if (embeds.requires_grad and embeds.is_leaf) or not embeds.is_contiguous():
            # enable_input_require_grads made it a leaf, where writing in place is forbidden
            return embeds.flatten(0, -2).index_put((index,), source).view_as(embeds)
        embeds.view(-1, embeds.shape[-1]).index_put_((index,), source)
        return embeds

    def overlay(self, ids: Tensor, embeds: Tensor) -> Tensor:
        """The embeddings [..., E] with our rows at triggers and task tokens of `ids` [...], wherever they are.

        Without asking the device where: for decoding steps, in which no given value stands.
        """
        pairs = [(name, kind) for name in self.heads for kind in ("trigger", "task")]
        known = torch.tensor([self.tokens[name].by_kind()[kind] for name, kind in pairs])
        rows = torch.stack([self.embeddings[name](kind) for name, kind in pairs]).to(embeds)
        same = ids[..., None] == known.to(ids.device, non_blocking=True)
        ours = rows.index_select(0, same.int().argmax(-1).flatten()).view_as(embeds)
        return torch.where(same.any(-1, keepdim=True), ours, embeds)

    def _encoded(
        self, name: str, places: Sequence[Place], inputs: Any, embeds: Tensor, *, given_here: bool, copies: int
    ) -> Tensor:
        """What the user gave, as rows [len(places), E], each for the copies of its row."""
        token = self.tokens[name].input_token
        if inputs is None and not places and given_here:
            inputs = self.empty_inputs(name, embeds.device)
        if token is None or (not places and (inputs is None or not given_here)):
            return embeds.new_zeros(0, embeds.shape[-1])
        if inputs is None:
            raise TPOError(
                f"the batch has {len(places)} input token(s) {token!r} of head {name!r}, and task_inputs[{name!r}] is "
                "missing; expected what the head's collate_inputs makes of the given values"
            )
        with float32(embeds.device):
            encoded = self.heads[name].encode(inputs)
        own = {place: number for number, place in enumerate(p for p in places if p[0] % copies == 0)}
        if copies > 1 and len(encoded) == len(own):
            encoded = encoded[[own[row - row % copies, column] for row, column in places]]
        if len(encoded) != len(places):
            raise TPOError(
                f"task_inputs[{name!r}] encodes {len(encoded)} given value(s), the batch has {len(places)} input "
                f"token(s) {token!r}; expected one for each, in their order"
            )
        if encoded.shape[-1] != embeds.shape[-1]:
            if places:
                raise HostError(
                    f"head {name!r} encodes given values to {encoded.shape[-1]} numbers, the width of the last hidden "
                    f"state; the host's input embeddings have {embeds.shape[-1]}, so it takes no input tokens {token!r}"
                )
            return embeds.new_zeros(0, embeds.shape[-1]) + encoded.sum().to(embeds)
        return encoded.to(embeds)

    def output_rows(self) -> Tensor:
        """The trained part of each trigger's output row, float32 [K, D]."""
        return torch.stack([self.embeddings[name]("output") for name in self.heads])

    # -- out of the host -----------------------------------------------------------------------------------------------

    def run(
        self,
        name: str,
        rows_ND: Tensor,
        places: Sequence[Place],
        task_inputs: Mapping[str, Any],
        *,
        seen: Seen | None = None,
        vision_size: int | None = None,
        copies: int = 1,
        ahead: int = 0,
    ) -> dict[str, Tensor]:
        """A head on the states at its task tokens, in float32, with what else its forward declares.

        `places` are those of the tokens; `copies` answers of each sample stand in successive rows. `vision_size` is the
        width of the host's vision tower.
        """
        head, asked = self.heads[name], _parameters(self.heads[name])
        options: dict[str, Any] = {}
        if "inputs" in asked:
            given = task_inputs.get(name)
            options["inputs"] = self.empty_inputs(name, rows_ND.device) if given is None else given
        if "batch_rows" in asked:
            batch_rows = torch.tensor([row // copies for row, _ in places], dtype=torch.int64)
            options["batch_rows"] = batch_rows.to(rows_ND.device, non_blocking=True)
        if "seen" in asked:
            assert seen is not None
            nothing = rows_ND.new_zeros(0, vision_size or 0)
            options["seen"] = HostFeatures([(row // copies, column + ahead) for row, column in places], seen, nothing)
        with float32(rows_ND.device):
            return head(rows_ND.float(), **options)

    def empty_inputs(self, name: str, device: torch.device) -> dict[str, Any] | None:
        """What a head makes of no tasks, if it takes inputs at all."""
        inputs = collate_inputs(self.codecs[name], [], [], [])
        return inputs and {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def float32(device: torch.device) -> torch.autocast:
    """Autocast off, in which heads compute."""
    return torch.autocast(device.type, enabled=False)


def _parameters(head: nn.Module) -> frozenset[str]:
    """What a head's forward declares."""
    return _parameters_of(type(head).forward)


@functools.cache
def _parameters_of(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)
