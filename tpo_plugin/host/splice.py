"""Hosts that put media features between the embeddings of the text on their own, so that positions shift.

Suffixes: B batch, T text tokens with a marker for each medium, S the same with media features, E embedding width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.host.base import Host
from tpo_plugin.positions import IGNORE_INDEX, Place, Positions, TextGroups
from tpo_plugin.tokens import KINDS, HeadTokens


def spliced_values(values_BT: Tensor, source_BS: Tensor) -> Tensor:
    """Labels where their tokens went, [B, S]; `source` is the flat index of each token, -100 is put where it is < 0."""
    moved = values_BT.flatten()[source_BS.clamp(min=0)]
    return moved.masked_fill(source_BS < 0, IGNORE_INDEX)


def spliced_positions(positions: Positions, source_BS: Tensor, tokens: Mapping[str, HeadTokens]) -> Positions:
    """Positions where their tokens went. Raises `TPOError` naming a token of a head that was cut off."""
    (num_rows, length), (new_rows, new_length) = positions.shape, source_BS.shape
    places = [place for *_, group in positions.by_token() for place in group] + list(positions.labels)
    targets = iter(_targets([row * length + column for row, column in places], num_rows * length, source_BS))

    def move(row: int, what: str) -> Place:
        flat = next(targets)
        if flat < 0:
            raise TPOError(_reason(row, what, source_BS))
        return flat // new_length, flat % new_length

    moved: dict[str, dict[str, list[Place]]] = {kind: {} for kind in KINDS}
    for kind, head, group in positions.by_token():
        what = f"the {kind} token {tokens[head].text(kind)!r} of head {head!r}"
        moved[kind][head] = [move(row, what) for row, _ in group]
    labels = [move(row, "a labelled trigger") for row, _ in positions.labels]
    return Positions.of_kinds((new_rows, new_length), moved, [place for place in labels if place[1]])


def spliced_groups(groups: TextGroups, shape: tuple[int, ...], source_BS: Tensor) -> TextGroups:
    """Columns of the text where its tokens went; those that were cut off are left out."""
    wanted = [row * shape[1] + column for row, columns in groups for column in columns]
    targets = iter(_targets(wanted, shape[0] * shape[1], source_BS))
    moved = [(row, [flat for flat in (next(targets) for _ in columns) if flat >= 0]) for row, columns in groups]
    return [(row, [flat % source_BS.shape[1] for flat in kept]) for row, kept in moved if kept]


def _targets(wanted: list[int], num_tokens: int, source_BS: Tensor) -> list[int]:
    """For each flat index of a token its flat index after splicing, -1 where it is gone. Reads the device once."""
    if not wanted:
        return []
    device = source_BS.device
    source = source_BS.flatten()
    inverse = torch.full((num_tokens + 1,), -1, device=device)
    inverse[torch.where(source < 0, num_tokens, source)] = torch.arange(len(source), device=device)
    return inverse[torch.tensor(wanted).to(device)].tolist()


def _reason(row: int, what: str, source_BS: Tensor) -> str:
    if row >= len(source_BS):
        return (
            f"{what} stands in row {row}, and the host kept {len(source_BS)} row(s) of the batch; give it a modality "
            "and a size for each medium of the batch"
        )
    return (
        f"{what} in row {row} was cut off: with the features of its media the row is longer than the host takes, "
        f"which kept {source_BS.shape[1]} positions, or its attention mask is 0 there; raise the host's maximal length "
        "(model_max_length, config.tokenizer_model_max_length), or give it shorter text or fewer frames"
    )


@dataclass
class SplicingHost(Host):
    """A host whose method `splice_method` makes embeddings from `input_ids` and media, and moves labels along.

    Its first five parameters are (input_ids [B, T], position_ids, attention_mask, past_key_values, labels), its result
    begins (input_ids, position_ids, attention_mask, past_key_values, inputs_embeds [B, S, E], labels [B, S]), with
    `inputs_embeds` None where it does not splice. Labels at media and padding are negative. Its `generate` calls the
    method and generates from embeddings.
    """

    splice_method: ClassVar[str]

    def video_spans(self, given: dict[str, Any]) -> list[list[tuple[int, int]]] | None:
        """For each row [start, stop) of each of its videos among all that the vision tower gets in one call.

        `given` are the method's arguments by name; None where it is not known.
        """
        return None

    def attach(self, model: nn.Module) -> list[Any]:
        """Puts the plugin around the method, on the instance."""
        inner: Callable[..., Any] = getattr(type(model), self.splice_method)
        handles = [_replace_method(model, self.splice_method, _following(inner))]
        if "cache_position" not in inspect.signature(type(model).forward).parameters:
            # Newer releases of transformers pass it to every forward; the decoder below derives it.
            prepare = _without_cache_position(type(model).prepare_inputs_for_generation)
            handles.append(_replace_method(model, "prepare_inputs_for_generation", prepare))
        return handles

    def start_generation(self, model: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Splices the prompt, so that generation starts from embeddings."""
        if kwargs.get("inputs_embeds") is not None:
            return kwargs
        method = getattr(model, self.splice_method)
        parameters = inspect.signature(method).parameters
        names = list(parameters)
        media = {name: kwargs.get(name, parameters[name].default) for name in names[5:]}
        media = {name: None if value is inspect.Parameter.empty else value for name, value in media.items()}
        given = {name: kwargs.get(name) for name in names[1:3]}
        rest = {k: v for k, v in kwargs.items() if k not in names}
        ids_BT = kwargs["input_ids"]
        _, position_ids, mask, _, embeds, *_ = method(ids_BT, given[names[1]], given[names[2]], None, None, **media)
        if embeds is None:
            embeds = model.get_input_embeddings()(ids_BT)
        if len(embeds) != len(ids_BT):
            raise TPOError(
                f"{type(model).__name__} kept {len(embeds)} of {len(ids_BT)} prompts; give it a modality and a size "
                "for each medium of the batch"
            )
        made = {"inputs_embeds": embeds, names[1]: position_ids, names[2]: mask}
        return rest | {name: value for name, value in made.items() if value is not None}

    def generate(self, model: Any, **kwargs: Any) -> Any:
        """The generation that the host's own `generate` calls with embeddings, which it does not take itself."""
        return GenerationMixin.generate(model, **kwargs)


def _following(inner: Callable[..., Any]) -> Callable[..., Any]:
    names = list(inspect.signature(inner).parameters)[1:]

    @wraps(inner)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        result: list[Any] = []

        def run(payload: Tensor) -> tuple[Tensor | None, Tensor | None]:
            result.extend(inner(self, **(given | {names[4]: payload})))
            return result[4], result[5]

        hooks = self.tpo.hooks
        result[4:6] = hooks.splice(given[names[0]], given.get(names[4]), run, hooks.host.video_spans(given))
        return tuple(result)

    return method


def _without_cache_position(inner: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(inner)
    def prepare_inputs_for_generation(self: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = inner(self, *args, **kwargs)
        inputs.pop("cache_position", None)
        return inputs

    return prepare_inputs_for_generation


@dataclass
class _Replaced:
    """A method of an instance that stands in front of the class's until it is removed."""

    model: nn.Module
    name: str

    def remove(self) -> None:
        self.model.__dict__.pop(self.name, None)


def _replace_method(model: nn.Module, name: str, function: Callable[..., Any]) -> _Replaced:
    if name in model.__dict__:
        raise HostError(f"{type(model).__name__}.{name} was replaced on this instance; take that back before apply_tpo")
    model.__dict__[name] = MethodType(function, model)
    return _Replaced(model, name)
