"""Running finished sequences once more, for the states that decoding did not keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.utils import ModelOutput

from tpo_plugin import sharding
from tpo_plugin.errors import HostError
from tpo_plugin.generation.answers import Found, Order
from tpo_plugin.positions import Place, Positions
from tpo_plugin.session import Replay, Session


def replay_missing(
    model: Any, session: Session, kwargs: dict[str, Any], sequences: Tensor, found: Sequence[Found], order: Order
) -> None:
    """Has the session keep the states at every task token of `found`.

    `kwargs` are those of the generation. Raises `HostError` where the host does not show them. Collective with
    `synced_gpus`.
    """
    groups = _groups(session, found, order, session.copies(sequences))
    if kwargs.get("synced_gpus"):  # the ranks replay as often, those with fewer task tokens for nothing
        groups += [[]] * (sharding.most(len(groups), sequences.device) - len(groups))
    for group in groups:
        _replay(model, session, kwargs, sequences, group)


def start_of(model: Any, host: Any, kwargs: dict[str, Any]) -> Any:
    """What generation starts from: embeddings where they are given, else ids; its first dimension is the batch."""
    names = ["inputs_embeds", "input_ids"]
    if host.decodes:  # an encoder may see media alone
        names += ["encoder_outputs", model.main_input_name]
    given = [kwargs[name] for name in names if kwargs.get(name) is not None]
    return given[0] if given else None


def _groups(session: Session, found: Sequence[Found], order: Order, copies: int) -> list[list[Found]]:
    """Groups of task tokens that one forward each has to compute: of one answer to each prompt, as its media come."""
    missing = [f for f in found if f.state >= 0 and (f.row, f.state) not in session.states]
    groups: dict[tuple[int, int], list[Found]] = {}
    for f in missing:
        # With "task_first" the task token stands in for a trigger that later text follows, so one of a row at a time.
        before = sum(g.row == f.row and g.trigger < f.trigger for g in missing) if order == "task_first" else 0
        groups.setdefault((f.row % copies, before), []).append(f)
    return list(groups.values())


def _replay(model: Any, session: Session, kwargs: dict[str, Any], sequences: Tensor, found: Sequence[Found]) -> None:
    """Runs the finished sequences once, as the prefill of a one-token generation, and keeps the states of `found`.

    The host's `generate` builds that forward (positions, masks, media), so it is the one that decoding was equal to.
    """
    tasks, host, copies = session.tasks, session.host, session.copies(sequences)
    copy = found[0].row % copies if found else 0
    sequences = sequences[copy::copies].clone()
    for f in found:
        sequences[f.row // copies, f.state] = tasks.tokens[f.head].task_id
    inputs, offset = _inputs(model, session, kwargs, sequences)
    places: dict[str, list[Place]] = {name: [] for name in tasks.heads}
    for f in found:
        places[f.head] += [(f.row // copies, f.state + offset), (f.row // copies, f.trigger - 1 + offset)]
    none: dict[str, list[Place]] = {name: [] for name in tasks.heads}
    positions = Positions((len(sequences), sequences.shape[1] + offset), trigger=none, task=places, input=none)
    session.keeps_states, session.replay = True, Replay(positions, offset, copies, copy)
    # Where a prompt's states are cut to the last before they can be seen, all of them are asked for.
    for options in ({}, {"logits_to_keep": 0}):
        if session.replay is not None and options.keys() <= signature(model.forward).parameters.keys():
            with sharding.outside_forward(model):
                host.generate(model, **inputs, **options, max_new_tokens=1, do_sample=False, num_beams=1)
    if session.replay is not None:  # its generation makes something else of a prompt
        model(**inputs)
    if session.replay is not None:
        raise HostError(
            f"the replay of finished sequences in {type(model).__name__} did not pass its last hidden state as "
            f"{list(positions.shape)}; use greedy decoding or sampling without an assistant model"
        )


def _inputs(model: Any, session: Session, kwargs: dict[str, Any], sequences: Tensor) -> tuple[dict[str, Any], int]:
    """What the host's `generate` takes to run `sequences`, one a prompt, in one forward, and where they begin there."""
    host = session.host
    options = {*signature(GenerationMixin.generate).parameters, *vars(GenerationConfig())}
    inputs = {k: v for k, v in kwargs.items() if k not in options | {"past_key_values"}}
    start = start_of(model, host, kwargs)
    if host.decodes:
        return inputs | {host.ids: sequences}, 0
    embeds = inputs.pop("inputs_embeds", None)
    if inputs.get("attention_mask") is None:
        inputs["attention_mask"] = torch.ones(start.shape[:2], dtype=torch.int64, device=start.device)
    inputs = _with_columns(model, inputs, start.shape[1], sequences.shape[1] - session.prompt.length)
    if embeds is None:
        return inputs | {"input_ids": sequences}, 0
    new = host.embed(sequences[:, session.prompt.length :])
    inputs.pop("input_ids", None)  # they stand among the embeddings
    return inputs | {"inputs_embeds": torch.cat([embeds, new], 1)}, embeds.shape[1] - session.prompt.length


@dataclass
class _Nothing(ModelOutput):
    """The output of no forward: whatever a host wants to take from it for the next step is None."""

    logits: None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def _with_columns(model: Any, inputs: dict[str, Any], length: int, num_new: int) -> dict[str, Any]:
    """The inputs of a prompt for `num_new` more tokens, each grown as the host grows it at a decoding step."""
    state = inputs | {"use_cache": True, "cache_position": torch.arange(length, device=model.device)}
    for _ in range(num_new):
        state = model._update_model_kwargs_for_generation(_Nothing(), state, is_encoder_decoder=False)
    return {name: state[name] for name in inputs}
