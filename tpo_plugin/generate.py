"""Generation with heads: the host's own `generate`, with task tokens placed behind triggers and heads run at the end.

Suffixes: B rows of the batch, T sequence, D hidden size, V vocabulary, N task tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList
from transformers.utils import ModelOutput

from tpo_plugin.errors import HostError, TPOError, did_you_mean
from tpo_plugin.positions import Positions
from tpo_plugin.session import Session, TriggerProcessor

if TYPE_CHECKING:
    from tpo_plugin.head import TaskHead
    from tpo_plugin.model import TaskPreferenceModel

Order = Literal["trigger_first", "task_first"]


@dataclass
class Prediction:
    """What a head made of one task token of a generated answer."""

    head: str
    """Name of the head."""
    position: int
    """Column of the task token in `sequences`; of the trigger where the answer was cut off there."""
    value: Any
    """The head's value for it (for a box, [4] xyxy in 0 to 1); None where the answer was cut off."""
    score: float | None
    """Probability with which the LM emitted the trigger; None where the host caps or scales its logits and the answer
    had to be replayed (beam search)."""
    head_score: float | None
    """The head's own confidence, where it has one."""
    text: str
    """The answer's text that leads to it: from the previous prediction, or the start, up to the trigger."""
    text_span: tuple[int, int]
    """Columns [start, end) of that text in `sequences`."""
    cut_off: bool = False
    """Whether generation ended at the trigger (`max_new_tokens`), before the task token."""
    _head: TaskHead | None = field(default=None, repr=False)

    def to_units(self, *, width: int | None = None, height: int | None = None, duration: float | None = None) -> Any:
        """The value in pixels of a `width` x `height` image, or in seconds of a `duration`; None where cut off."""
        if self.value is None or self._head is None:
            return None
        return self._head.to_units(self.value, width=width, height=height, duration=duration)

    def to_json(self) -> dict[str, Any]:
        """All fields as plain numbers, strings and lists."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if not f.name.startswith("_")}
        value = None if self.value is None or self._head is None else self._head.to_json(self.value)
        return plain | {"value": value, "text_span": list(self.text_span)}


@dataclass
class GenerateOutput:
    """Result of `model.tpo.generate`."""

    sequences: Tensor
    """What the host's generate returned, [B, T]: prompt and answer (only the answer, if it starts from embeddings)."""
    predictions: list[list[Prediction]]
    """For each row of `sequences`, its predictions in the order in which they stand."""
    output: Any = None
    """The host's whole result where `return_dict_in_generate` was asked for."""


@torch.no_grad()
def generate(
    tpo: TaskPreferenceModel,
    inputs: Tensor | None = None,
    *,
    task_inputs: dict[str, Any] | None = None,
    task_frames: list[list[int]] | None = None,
    task_positions: Positions | None = None,
    route: str | None = None,
    order: Order = "trigger_first",
    **kwargs: Any,
) -> GenerateOutput:
    """Generates with the host's own `generate` and runs the heads at the task tokens of each answer.

    Args:
        inputs, kwargs: Everything that the host's `generate` takes.
        task_inputs: What the heads need to see, by head, and what the user gives in the prompt (encoded input tokens).
        task_frames: For each row of the prompt the number of frames of each of its videos, for heads that look at them.
        task_positions: As `TPOCollator` gives it: what of the prompt is the last question, for heads that look at it;
            without it all text of the prompt is.
        route: Name of a head that must be called: where the answer would end without its trigger, the trigger is put.
        order: "trigger_first" as in training; "task_first" as in the authors' demo, where the state is computed with
            the task token in the trigger's place and the answer goes on without it (OpenGVLab/TPO, app.py).

    Rows are captured while decoding. Where that is not sound (beam search, assisted decoding), or where an answer ends
    with its task token, the finished sequences are run once more. Raises `TPOError` for an unknown route or order.
    """
    if route is not None and route not in tpo.heads:
        raise TPOError(f"route={route!r} is not an applied head{did_you_mean(route, tpo.heads)}")
    if order not in ("trigger_first", "task_first"):
        raise TPOError(f"order={order!r}; expected 'trigger_first' or 'task_first'")
    if inputs is not None:
        kwargs["inputs_embeds" if inputs.is_floating_point() else "input_ids"] = inputs
    if tpo.host.ids not in kwargs and tpo.model.main_input_name != "input_ids" and tpo.host.ids != "input_ids":
        kwargs |= {tpo.host.ids: kwargs.pop("input_ids")} if "input_ids" in kwargs else {}  # as generate does itself
    if _start(tpo, kwargs) is None:
        raise TPOError("model.tpo.generate got neither input_ids nor inputs_embeds; expected a prompt")
    captured = tpo.capture(kwargs.get("input_ids"), None, task_frames, task_positions)
    with _session(tpo, Session(0, 1, task_inputs, False, captured)):
        kwargs = tpo.host.start_generation(tpo.model, kwargs)
    prompt_length = _prompt_length(tpo, kwargs)
    option = _options(tpo, kwargs)
    captures = (
        order == "trigger_first"
        and not any(
            option(name)
            for name in (
                "assistant_model",
                "prompt_lookup_num_tokens",
                "penalty_alpha",
                "dola_layers",
                "custom_generate",
            )
        )
        and (option("num_beams") or 1) == 1
    )
    session = Session(prompt_length, len(_start(tpo, kwargs)), task_inputs, captures, captured)
    processors = LogitsProcessorList(kwargs.pop("logits_processor", None) or [])
    if order == "trigger_first":
        processors.append(TriggerProcessor(tpo, session, route, _stop(option, prompt_length)))
    elif route is not None:
        raise TPOError("route= needs order='trigger_first': in the other order no trigger is placed")
    with _session(tpo, session):
        output = tpo.host.generate(tpo.model, **kwargs, logits_processor=processors)
        sequences = output if isinstance(output, Tensor) else output.sequences
        found = _find(tpo, sequences, prompt_length, order)
        for passed in _replays(session, found, order, session.copies(sequences)):
            _replay(tpo, session, kwargs, sequences, passed)
    return GenerateOutput(
        sequences=sequences,
        predictions=_predict(tpo, session, sequences, found),
        output=None if isinstance(output, Tensor) else output,
    )


@contextmanager
def _session(tpo: TaskPreferenceModel, session: Session) -> Iterator[None]:
    if tpo.session is not None:
        raise TPOError("model.tpo.generate was called while it was generating; a session is one generation")
    tpo.session = session
    try:
        yield
    finally:
        tpo.session = None


def _start(tpo: TaskPreferenceModel, kwargs: dict[str, Any]) -> Any:
    """What generation starts from: embeddings where they are given, else ids; its first dimension is the batch."""
    names = ["inputs_embeds", "input_ids"]
    if tpo.host.ids != "input_ids":  # an encoder may see media alone
        names += ["encoder_outputs", tpo.model.main_input_name]
    given = [kwargs[name] for name in names if kwargs.get(name) is not None]
    return given[0] if given else None


def _prompt_length(tpo: TaskPreferenceModel, kwargs: dict[str, Any]) -> int:
    """Columns of `sequences` before the answer; an encoder-decoder's answer has at least its start token before it."""
    ids = kwargs.get(tpo.host.ids)
    if tpo.host.ids != "input_ids":
        return 1 if ids is None else ids.shape[1]
    return kwargs["input_ids"].shape[1] if kwargs.get("inputs_embeds") is None else 0


def _options(tpo: TaskPreferenceModel, kwargs: dict[str, Any]) -> Any:
    """Generation options as generate would see them: its arguments before those of the generation config."""
    config = kwargs.get("generation_config") or tpo.model.generation_config

    def option(name: str) -> Any:
        return kwargs[name] if name in kwargs else getattr(config, name, None)

    return option


def _stop(option: Any, prompt_length: int) -> tuple[list[int], int | None]:
    """End-of-text ids, and the greatest length of a sequence."""
    eos = option("eos_token_id")
    eos = [] if eos is None else [eos] if isinstance(eos, int) else torch.as_tensor(eos).flatten().tolist()
    new = option("max_new_tokens")
    return eos, option("max_length") if new is None else prompt_length + new


@dataclass
class _Found:
    """A trigger of an answer."""

    row: int
    trigger: int
    """Column of the trigger."""
    head: str
    state: int
    """Column whose hidden state is the task embedding; -1 where the answer was cut off."""


def _find(tpo: TaskPreferenceModel, sequences: Tensor, prompt_length: int, order: Order) -> list[_Found]:
    by_trigger = {trigger: (name, task) for name, (trigger, task) in tpo.token_ids.items()}
    found = []
    for row, ids in enumerate(sequences.tolist()):
        for column in range(prompt_length, len(ids)):
            if ids[column] not in by_trigger:
                continue
            name, task = by_trigger[ids[column]]
            if order == "task_first":
                state = column
            else:
                state = column + 1 if column + 1 < len(ids) and ids[column + 1] == task else -1
            found.append(_Found(row, column, name, state))
    return found


def _replays(session: Session, found: list[_Found], order: Order, copies: int) -> list[list[_Found]]:
    """Groups of task tokens that one forward each has to compute: of one answer to each prompt, as its media come."""
    missing = [f for f in found if f.state >= 0 and (f.row, f.state) not in session.states]
    groups: dict[tuple[int, int], list[_Found]] = {}
    for f in missing:
        # With "task_first" the task token stands in for a trigger that later text follows, so one of a row at a time.
        before = sum(g.row == f.row and g.trigger < f.trigger for g in missing) if order == "task_first" else 0
        groups.setdefault((f.row % copies, before), []).append(f)
    return list(groups.values())


def _replay(
    tpo: TaskPreferenceModel, session: Session, kwargs: dict[str, Any], sequences: Tensor, found: list[_Found]
) -> None:
    """Runs the finished sequences once, as the prefill of a one-token generation, and captures the states of `found`.

    The host's `generate` builds that forward (positions, masks, media), so it is the one that decoding was equal to.
    """
    model, copies = tpo.model, session.copies(sequences)
    copy = found[0].row % copies
    sequences = sequences[copy::copies].clone()
    for f in found:
        sequences[f.row // copies, f.state] = tpo.tokens[f.head].task_id
    inputs, offset = _replay_inputs(tpo, session, kwargs, sequences)
    places: dict[str, list[list[int]]] = {name: [] for name in tpo.heads}
    for f in found:
        places[f.head] += [[f.row // copies, f.state + offset], [f.row // copies, f.trigger - 1 + offset]]
    shape = [len(sequences), sequences.shape[1] + offset]
    replayed = {"shape": shape, "task": places, "offset": offset, "copies": copies, "copy": copy}
    session.capturing, session.replayed = True, replayed
    # Where a prompt's states are cut to the last before they can be seen, all of them are asked for.
    for options in ({}, {"logits_to_keep": 0}):
        if session.replayed is not None and options.keys() <= signature(model.forward).parameters.keys():
            tpo.host.generate(model, **inputs, **options, max_new_tokens=1, do_sample=False, num_beams=1)
    if session.replayed is not None:  # its generation makes something else of a prompt
        model(**inputs)
    if session.replayed is not None:
        raise HostError(
            f"the replay of finished sequences in {type(model).__name__} did not pass its last hidden state as "
            f"{shape}; use greedy decoding or sampling without an assistant model"
        )


def _replay_inputs(
    tpo: TaskPreferenceModel, session: Session, kwargs: dict[str, Any], sequences: Tensor
) -> tuple[dict[str, Any], int]:
    """What the host's `generate` takes to run `sequences`, one a prompt, in one forward, and where they begin there."""
    model = tpo.model
    options = {*signature(GenerationMixin.generate).parameters, *vars(GenerationConfig())}
    inputs = {k: v for k, v in kwargs.items() if k not in options | {"past_key_values"}}
    start = _start(tpo, kwargs)
    if tpo.host.ids != "input_ids":
        return inputs | {tpo.host.ids: sequences}, 0
    embeds = inputs.pop("inputs_embeds", None)
    if inputs.get("attention_mask") is None:
        inputs["attention_mask"] = torch.ones(start.shape[:2], dtype=torch.int64, device=start.device)
    inputs = _with_columns(model, inputs, start.shape[1], sequences.shape[1] - session.prompt_length)
    if embeds is None:
        return inputs | {"input_ids": sequences}, 0
    embedded = tpo.host.embed(sequences)
    return inputs | {"inputs_embeds": torch.cat([embeds, embedded], 1)}, embeds.shape[1]


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


def _predict(
    tpo: TaskPreferenceModel, session: Session, sequences: Tensor, found: list[_Found]
) -> list[list[Prediction]]:
    values: dict[tuple[str, int, int], Any] = {}
    head_scores: dict[tuple[str, int, int], float] = {}
    for name, head in tpo.heads.items():
        places = [(f.row, f.state) for f in found if f.head == name and f.state >= 0]
        if not places:
            continue
        rows_ND = torch.stack([session.states[place] for place in places])
        inputs = session.task_inputs or {}
        outputs = tpo.run_head(name, rows_ND, places, inputs, session.captured, session.copies(sequences))
        values |= zip(((name, *place) for place in places), head.postprocess(outputs), strict=True)
        scores = head.score(outputs)
        if scores is not None:
            head_scores |= zip(((name, *place) for place in places), scores.tolist(), strict=True)
    predictions: list[list[Prediction]] = [[] for _ in sequences]
    for f in found:
        before = predictions[f.row]
        begin = before[-1].position + 1 if before else session.prompt_length
        key = (f.head, f.row, f.state)
        before.append(
            Prediction(
                head=f.head,
                position=f.trigger if f.state < 0 else f.state,
                value=values.get(key),
                score=_trigger_score(tpo, session, f),
                head_score=head_scores.get(key),
                text=tpo.tokenizer.decode(sequences[f.row, begin : f.trigger], skip_special_tokens=True),
                text_span=(begin, f.trigger),
                cut_off=f.state < 0,
                _head=tpo.heads[f.head],
            )
        )
    return predictions


def _trigger_score(tpo: TaskPreferenceModel, session: Session, found: _Found) -> float | None:
    """Probability of the trigger where it was emitted."""
    step = found.trigger - session.prompt_length
    if session.trigger_logprobs:
        return float(session.trigger_logprobs[step][found.row, list(tpo.heads).index(found.head)].exp())
    before = session.states.get((found.row, found.trigger - 1))
    if before is None or not tpo.host.head_gives_logits:
        return None
    logits = tpo.host.head(before[None, None])[0, 0].float()
    for tokens in tpo.tokens.values():  # never emitted freely: out of the choice, as while decoding
        logits[[i for i in (tokens.task_id, tokens.input_id) if i is not None]] = float("-inf")
    return float(logits.softmax(-1)[tpo.tokens[found.head].trigger_id])
