"""The tokens of a head: their ids in the tokenizer, their place in a batch, and their trainable rows.

Suffixes: B batch, T sequence, D hidden size of the output embedding's input, E width of the input embedding's output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn

from tpo_plugin import sharding
from tpo_plugin.errors import TPOError
from tpo_plugin.names import TokenNames, resolve_tokens

__all__ = ["HeadTokens", "TokenNames", "TokenRows", "Undo", "add_tokens", "resolve_tokens"]

KINDS = ("trigger", "task", "input")
"""Kinds of a head's tokens, in the order in which their rows are put among the input embeddings."""

Undo = Callable[[], Any]
"""A step that takes one change back; a `functools.partial`, so that `copy.deepcopy` of a host rebinds it."""


@dataclass(frozen=True)
class HeadTokens(TokenNames):
    """Tokens of one head and their ids."""

    trigger_id: int
    task_id: int
    input_id: int | None

    def by_kind(self) -> dict[str, int]:
        """Id by kind: "trigger", "task" and, where the head has one, "input"."""
        ids = {"trigger": self.trigger_id, "task": self.task_id}
        return ids if self.input_id is None else ids | {"input": self.input_id}


class TokenRows(nn.Module):
    """Trainable rows of one head's trigger and task token, laid over the host's frozen matrices.

    Read through `forward`, so that ZeRO-3 gathers them.
    """

    def __init__(self, inputs_2E: Tensor, output_D: Tensor) -> None:
        super().__init__()
        self.trigger = nn.Parameter(inputs_2E[0].clone())
        """Input row of the trigger token, [E]."""
        self.task = nn.Parameter(inputs_2E[1].clone())
        """The task token v_i, [E]."""
        self.output = nn.Parameter(output_D.clone())
        """What is added to the trigger's row of the output embedding, [D]: zero changes no logit of the host."""
        self.untrained: Tensor
        self.register_buffer("untrained", output_D.clone(), persistent=False)

    def forward(self, kind: str) -> Tensor:
        """A copy of the row of `kind` "trigger", "task" or "output", float32: ZeRO-3 takes the parameter away again."""
        return getattr(self, kind).to(torch.float32, copy=True)

    def is_untrained(self) -> bool:
        """Whether nothing has trained or loaded the output row since it was made. Collective."""
        output = sharding.whole({"output": self.output})["output"]
        return torch.equal(output, self.untrained.cpu().to(output.dtype))


def add_tokens(tokenizer: Any, names: Mapping[str, Mapping[str, str | None]]) -> tuple[dict[str, HeadTokens], Undo]:
    """Puts the tokens into the tokenizer as special tokens, each looked up as a single id.

    Raises `TPOError` where a token is an ordinary word of the vocabulary already, or is not kept in one piece.
    """
    wanted = [token for fields in names.values() for token in fields.values() if token is not None]
    vocabulary, added = tokenizer.get_vocab(), {str(token) for token in tokenizer.added_tokens_decoder.values()}
    for token in wanted:
        if token in vocabulary and token not in added:
            raise TPOError(
                f"token {token!r} is an ordinary word of the tokenizer (id {vocabulary[token]}): text that contains it "
                "would call the head; choose another with HeadConfig(trigger=…, task_token=…, input_token=…)"
            )
    undo = _tokenizer_undo(tokenizer)
    new = [AddedToken(token, special=True, normalized=False) for token in wanted if token not in vocabulary]
    try:
        if new:
            tokenizer.add_tokens(new, special_tokens=True)
        ids = {token: _single_id(tokenizer, token) for token in wanted}
    except Exception:
        undo()
        raise
    tokens = {
        head: HeadTokens(
            **fields,  # type: ignore[arg-type]  # None only where a head has no input token
            trigger_id=ids[fields["trigger"] or ""],
            task_id=ids[fields["task_token"] or ""],
            input_id=None if fields["input_token"] is None else ids[fields["input_token"]],
        )
        for head, fields in names.items()
    }
    return tokens, undo


def _single_id(tokenizer: Any, token: str) -> int:
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != token:
        raise TPOError(
            f"token {token!r} is split by the tokenizer into ids {ids} ({tokenizer.convert_ids_to_tokens(ids)}); "
            "expected one id of its own: choose another token in the head's config"
        )
    return ids[0]


def _tokenizer_undo(tokenizer: Any) -> Undo:
    backend = getattr(tokenizer, "_tokenizer", None)
    if isinstance(backend, Tokenizer):
        return partial(_restore_fast_tokenizer, tokenizer, backend.to_str())
    return partial(_restore_slow_tokenizer, tokenizer, copy.deepcopy(tokenizer).__dict__)


def _restore_fast_tokenizer(tokenizer: Any, serialized: str) -> None:
    tokenizer._tokenizer = Tokenizer.from_str(serialized)


def _restore_slow_tokenizer(tokenizer: Any, attributes: dict[str, Any]) -> None:
    tokenizer.__dict__.clear()
    tokenizer.__dict__.update(attributes)
