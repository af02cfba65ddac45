"""The tokens of a head: their ids in the tokenizer, their place in a batch, and their trainable rows.

Suffixes: B batch, T sequence, D hidden size of the output embedding's input, E width of the input embedding's output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn

from tpo_plugin import zero
from tpo_plugin.config import HeadConfig
from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.plugins import HeadSpec

Undo = Callable[[], Any]
"""A step that takes one change back; a `functools.partial`, so that `copy.deepcopy` of a host rebinds it."""


@dataclass(frozen=True)
class HeadTokens:
    """Tokens of one head and their ids."""

    trigger: str
    task_token: str
    input_token: str | None
    trigger_id: int
    task_id: int
    input_id: int | None

    def text(self, kind: str) -> str | None:
        """The token of `kind` "trigger", "task" or "input" as it stands in a text."""
        return {"trigger": self.trigger, "task": self.task_token, "input": self.input_token}[kind]

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

    def forward(self, kind: str) -> Tensor:
        """A copy of the row of `kind` "trigger", "task" or "output", float32: ZeRO-3 takes the parameter away again."""
        return getattr(self, kind).to(torch.float32, copy=True)


def resolve_tokens(specs: Iterable[HeadSpec], configs: Mapping[str, HeadConfig]) -> dict[str, dict[str, str | None]]:
    """Token strings by head and kind, from the config or as registered.

    Raises `TPOError` where two heads claim a token, naming both.
    """
    owners: dict[str, HeadSpec] = {}
    resolved: dict[str, dict[str, str | None]] = {}
    for spec in specs:
        config = configs[spec.name]
        fields = {
            kind: getattr(config, kind) or getattr(spec, kind) for kind in ("trigger", "task_token", "input_token")
        }
        for kind, token in fields.items():
            if token is None:
                continue
            if token in owners:
                owner = owners[token]
                raise TPOError(
                    f"head {spec.name!r} ({spec.plugin}) claims token {token!r}, already claimed by {owner.name!r} "
                    f"({owner.plugin}); set {kind}= in the config of one of them"
                )
            owners[token] = spec
        resolved[spec.name] = fields
    return resolved


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


# -- vocabulary --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Growth:
    """Rows that the host's matrices got because it had no spare ones for the new tokens."""

    old_size: int
    new_size: int


def grow_vocabulary(model: nn.Module, tokens: Iterable[HeadTokens]) -> tuple[Growth | None, Undo]:
    """Makes room for the tokens' ids; does nothing where the matrices have spare rows.

    New rows of the host are zero: the trainable rows carry all of the new tokens. Grows to a multiple of 64.
    """
    size = _vocabulary_size(model)
    needed = 1 + max(i for t in tokens for i in t.by_kind().values())
    if needed <= size:
        return None, partial(int)
    if zero.split(model.parameters()):
        raise HostError(
            f"{type(model).__name__} has {size} vocabulary rows, the task tokens need {needed}, and ZeRO-3 split it "
            "when it was loaded; load it before the TrainingArguments are made, or name special tokens that it has: "
            "TPOConfig(heads={name: {'trigger': …, 'task_token': …}})"
        )
    if output_embedding(model) is None:
        raise HostError(
            f"{type(model).__name__} has {size} vocabulary rows, the task tokens need {needed}, and it names no output "
            "embedding to grow; name special tokens that it already has: TPOConfig(heads={name: {'trigger': …}})"
        )
    embeddings = input_embedding(model), model.get_output_embeddings()
    matrices = [(module, name, matrix, len(matrix)) for module, name, matrix in _matrices(model)]
    children = [(module, name, child) for module in model.modules() for name, child in module._modules.items()]
    replaced: list[tuple[nn.Module, str, nn.Module | None]] = []
    vocabulary_names = _vocabulary_names(model)
    attributes = _size_attributes(model, vocabulary_names)
    undo = partial(_shrink_vocabulary, model, embeddings, matrices, replaced, attributes)
    try:
        try:
            # Never below a table that is larger already: its rows would be lost.
            _resize(model, max(-(-needed // 64) * 64, *(len(module.weight) for module in embeddings)))
        finally:
            replaced += [
                (module, name, child) for module, name, child in children if module._modules[name] is not child
            ]
        for owner, name, value in attributes:
            if name in vocabulary_names and value == size:  # mllama's inner model keeps its own, which its loss uses
                setattr(owner, name, _vocabulary_size(model))
        fresh: dict[nn.Parameter, nn.Parameter] = {}  # one for two tied matrices
        for module, name, _, num_rows in matrices:
            old = getattr(module, name)
            if old is None or len(old) == num_rows:  # None: a bias that the host dropped when it grew
                continue
            # A new object: a graph that is still alive remembers the old one with its old shape.
            new = fresh.setdefault(old, nn.Parameter(old.data, requires_grad=old.requires_grad))
            new.data[num_rows:] = 0
            setattr(module, name, new)
        if _vocabulary_size(model) < needed:
            raise HostError(f"its matrices have {_vocabulary_size(model)} rows after growing")
    except Exception as error:
        undo()
        raise HostError(
            f"{type(model).__name__} has {size} vocabulary rows, the task tokens need {needed}, and growing it failed "
            f"({error}); name special tokens that it already has: TPOConfig(heads={{name: {{'trigger': …}}}})"
        ) from error
    return Growth(size, _vocabulary_size(model)), undo


def input_embedding(model: Any) -> Any:
    """`model.get_input_embeddings()`; where a model cannot say it, its one table with a row for each logit, or None."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        head = output_embedding(model)
        tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not head]
        tables = [m for m in tables if head is not None and len(m.weight) == len(head.weight)]
        return tables[0] if len(tables) == 1 else None


def output_embedding(model: Any) -> Any:
    """`model.get_output_embeddings()`, None also where the model has no such method."""
    try:
        return model.get_output_embeddings()
    except NotImplementedError:
        return None


def _vocabulary_size(model: Any) -> int:
    modules = [input_embedding(model), output_embedding(model)]
    return min(zero.shape(module.weight)[0] for module in modules if module is not None)


def _vocabulary_names(model: nn.Module) -> set[str]:
    """What the host's configurations call the size of the vocabulary."""
    maps = [getattr(getattr(module, "config", None), "attribute_map", {}) for module in model.modules()]
    return {"vocab_size"} | {old for names in maps for old, new in names.items() if new == "vocab_size"}


def _size_attributes(model: nn.Module, vocabulary_names: set[str]) -> list[tuple[Any, str, int | None]]:
    """Every attribute that may hold the size of the vocabulary, and its value; None where it is not there."""
    owners: list[Any] = list(model.modules())
    for config in [getattr(module, "config", None) for module in model.modules()]:  # an inner model may have a copy
        parts = [getattr(config, name, None) for name in ("text_config", "llm_config", "language_config")]
        owners += [part for part in (config, *parts) if part is not None]
    names = [(owner, name) for owner in owners for name in (*vocabulary_names, "vocab_size_per_layer_input")]
    names += [(module, name) for module in model.modules() for name in ("num_embeddings", "out_features")]
    return [(owner, name, getattr(owner, name, None)) for owner, name in names]


def _matrices(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Every parameter that has rows: a host may have tables of its vocabulary beside its two embeddings."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dim():
                yield module, name, parameter


def _resize(model: nn.Module, size: int) -> None:
    """Resizes both matrices; the output embedding stays the same module, with its hooks."""
    head = model.get_output_embeddings()
    options = {"mean_resizing": False} if "mean_resizing" in signature(model.resize_token_embeddings).parameters else {}
    model.resize_token_embeddings(size, **options)
    resized = model.get_output_embeddings()
    if resized is not head:
        for name, parameter in resized._parameters.items():
            head._parameters[name] = parameter
        head.out_features = resized.out_features
        model.set_output_embeddings(head)


def _shrink_vocabulary(
    model: nn.Module,
    embeddings: tuple[nn.Module, nn.Module],
    matrices: list[tuple[nn.Module, str, nn.Parameter, int]],
    replaced: list[tuple[nn.Module, str, nn.Module | None]],
    attributes: list[tuple[Any, str, int | None]],
) -> None:
    """Back to the old rows, in the parameters that were there before growing, with what training made of them."""
    if model.get_output_embeddings() is not embeddings[1]:
        model.set_output_embeddings(embeddings[1])
    if input_embedding(model) is not embeddings[0]:
        model.set_input_embeddings(embeddings[0])
    for module, name, child in replaced:
        module._modules[name] = child
    for module, name, original, num_rows in matrices:
        if getattr(module, name) is original and len(original) == num_rows:
            continue
        if getattr(module, name) is not None:
            original.data = getattr(module, name).data[:num_rows].clone()
        setattr(module, name, original)
    for owner, name, value in attributes:
        if value is None:
            vars(owner).pop(name, None)
        elif getattr(owner, name) != value:
            setattr(owner, name, value)


# -- batches -----------------------------------------------------------------------------------------------------------

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
