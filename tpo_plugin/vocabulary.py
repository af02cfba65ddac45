"""The rows of a host's vocabulary: making room for the tokens of heads, and taking it back."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

from torch import nn

from tpo_plugin import sharding
from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.tokens import HeadTokens, Undo

logger = logging.getLogger(__name__)


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
    if sharding.split(model.parameters()):
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
    if any(hasattr(module, "_hf_hook") and module.weight.is_meta for module in embeddings):
        raise HostError(
            f"{type(model).__name__} has {size} vocabulary rows, the task tokens need {needed}, and accelerate "
            "offloaded its embeddings, which cannot grow there; keep both on a device (device_map), or name special "
            "tokens that it has: TPOConfig(heads={name: {'trigger': …, 'task_token': …}})"
        )
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


def same_embeddings(model: nn.Module) -> Undo:
    """The first step of the way back from a grown vocabulary. Raises `TPOError` where an embedding was put into another
    module since, as LoRA does: what that learned would be lost with it."""
    embeddings = input_embedding(model), output_embedding(model)

    def check() -> None:
        for before, now in zip(embeddings, (input_embedding(model), output_embedding(model)), strict=True):
            if now is not before:
                raise TPOError(
                    f"an embedding was replaced by a {type(now).__module__}.{type(now).__name__} after apply_tpo had "
                    "grown the vocabulary, and would be lost with TPO; take LoRA off first (model.merge_and_unload() "
                    "or model.unload()), or leave TPO on: a copy that was trained (modules_to_save) cannot shrink"
                )

    return check


class Resize:
    """`model.resize_token_embeddings` while TPO is on: the usual line of a training script finds its work done.

    Raises `TPOError` for a size that would lose rows of the heads' tokens, or add rows behind TPO's back.
    """

    def __init__(self, model: Any, needed: int) -> None:
        self.model, self.needed = model, needed

    def __call__(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        rows = _vocabulary_size(self.model)
        size, multiple = new_num_tokens or rows, pad_to_multiple_of or 1
        size = -(-size // multiple) * multiple
        if not self.needed <= size <= rows:
            raise TPOError(
                f"resize_token_embeddings({new_num_tokens}): the vocabulary has {rows} rows, of which the tokens of "
                f"the applied heads need the first {self.needed}; expected a number of {self.needed} to {rows}, which "
                "changes nothing. For other sizes resize before apply_tpo, or call remove_tpo(model) first"
            )
        logger.info("resize_token_embeddings(%s): the %d rows have room for it", new_num_tokens, rows)
        return input_embedding(self.model)


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
    return min(sharding.shape(module.weight)[0] for module in modules if module is not None)


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
