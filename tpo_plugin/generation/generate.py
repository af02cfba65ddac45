"""Generation with heads: the host's own `generate`, with task tokens placed behind triggers and heads run at the end.

Suffixes: B rows of the batch, T sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessorList, StoppingCriteriaList

from tpo_plugin import sharding
from tpo_plugin.errors import HostError, TPOError, did_you_mean
from tpo_plugin.generation.answers import HeadOutputs, Order, Prediction, find, predict, run_heads
from tpo_plugin.generation.replay import replay_missing, start_of
from tpo_plugin.hooks import Hooks
from tpo_plugin.positions import Positions
from tpo_plugin.session import NoteNewest, Prompt, Session, TriggerProcessor
from tpo_plugin.step import TaskArguments, seen_of

_REPLAYED = (
    *("assistant_model", "assistant_early_exit", "prompt_lookup_num_tokens"),
    *("penalty_alpha", "dola_layers", "custom_generate"),
)
"""Options of a way of decoding in which states cannot be kept while it goes on."""

_LEAVES_OUT: set[type] = set()
"""Classes of models whose own `generate` was seen to leave out the processors that it is given."""


@dataclass
class GenerateOutput:
    """Result of `model.tpo.generate`, and `model.tpo.last_generated` after it or the host's own `generate`."""

    sequences: Tensor
    """What the host's generate returned, [B, T]: prompt and answer (only the answer, if it starts from embeddings)."""
    predictions: list[list[Prediction]]
    """For each row of `sequences`, its predictions in the order in which they stand."""
    output: Any = None
    """The host's whole result where `return_dict_in_generate` was asked for."""
    prompt_length: int = 0
    """Columns of `sequences` before the answers."""
    outputs: dict[str, HeadOutputs] = field(default_factory=dict)
    """What the forward of each head that was called gave."""

    def outputs_of(self, head: str, row: int) -> tuple[dict[str, Any], int]:
        """What a head's forward gave for one answer, and for how many task tokens."""
        found = self.outputs.get(head)
        return ({}, 0) if found is None else found.of_row(row)


@torch.no_grad()
def generate(
    hooks: Hooks,
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

    States are kept while decoding. Where that is not sound (beam search, assisted decoding), or where an answer ends
    with its task token, the finished sequences are run once more. Where ZeRO-3 or FSDP2 split the parameters, all ranks
    must generate, from prompts with media of the same kinds; those that end early keep step. Raises `TPOError` for an
    unknown route or order, and `HostError` where the host's `generate` leaves out what places the tokens.
    """
    model, host, tasks = hooks.model, hooks.host, hooks.tasks
    if route is not None and route not in tasks.heads:
        raise TPOError(f"route={route!r} is not an applied head{did_you_mean(route, tasks.heads)}")
    if order not in ("trigger_first", "task_first"):
        raise TPOError(f"order={order!r}; expected 'trigger_first' or 'task_first'")
    if route is not None and order != "trigger_first":
        raise TPOError("route= needs order='trigger_first': in the other order no trigger is placed")
    if inputs is not None:
        other = "inputs_embeds" if model.main_input_name == "input_ids" else model.main_input_name
        kwargs[other if inputs.is_floating_point() else "input_ids"] = inputs
    if host.decodes and host.ids not in kwargs and model.main_input_name != "input_ids" and "input_ids" in kwargs:
        kwargs[host.ids] = kwargs.pop("input_ids")  # as generate does itself
    start = start_of(model, host, kwargs)
    if start is None:
        raise TPOError("model.tpo.generate got neither input_ids nor inputs_embeds; expected a prompt")
    if not all(start.shape[:2]):
        raise TPOError(
            f"the batch is empty: the prompt has the shape {list(start.shape)}; expected at least one row of one token"
        )
    given = TaskArguments.taken(
        {"task_inputs": task_inputs, "task_frames": task_frames, "task_positions": task_positions}, list(tasks.heads)
    )
    seen = seen_of(tasks, kwargs.get("input_ids"), None, given)
    with hooks.now.generating(Session(tasks, host, Prompt(given, len(start), 0, seen), keeps_states=False)):
        kwargs = host.start_generation(model, kwargs)
    sharding.at_rest(model)
    if tasks.is_split and torch.distributed.is_initialized():
        kwargs.setdefault("synced_gpus", True)
    length, option = _prompt_length(host, kwargs), _options(model, kwargs)
    keeps = order == "trigger_first" and not any(map(option, _REPLAYED)) and (option("num_beams") or 1) == 1
    first, ids = start_of(model, host, kwargs), kwargs.get("input_ids")
    if not host.decodes and ids is not None and first is ids and kwargs.get("attention_mask") is None:
        mask = _mask_of_padding(ids, option)
        kwargs |= {} if mask is None else {"attention_mask": mask}
    prompt = Prompt(given, len(first), length, seen, ahead=0 if host.decodes else first.shape[1] - length)
    session = Session(tasks, host, prompt, keeps_states=keeps)
    eos, max_length = _stop(option, length)
    processor = TriggerProcessor(
        session, route, eos=eos, max_length=max_length, keeps_logits=bool(option("output_logits"))
    )
    with hooks.now.generating(session):
        watchers = _watchers(model, kwargs, processor, order, keeps)
        if type(model) not in _LEAVES_OUT:
            with sharding.outside_forward(model):
                output = host.generate(model, **kwargs, **watchers)
        if order == "trigger_first" and not processor.called:
            output = _generate_past(model, kwargs | watchers)
        sequences = output if isinstance(output, Tensor) else output.sequences
        processor.note_triggers(sequences[:, -1].tolist(), sequences.shape[1] - 1)
        found = find(session, sequences, order)
        replay_missing(model, session, kwargs, sequences, found, order)
    with sharding.outside_forward(model):
        outputs = run_heads(session, sequences, found)
        predictions = predict(session, processor, sequences, found, outputs)
    without = [row for row, own in enumerate(predictions) if route is not None and all(p.head != route for p in own)]
    if without:
        raise TPOError(
            f"route={route!r}: the answers of rows {without} ended without its trigger, after "
            f"{sequences.shape[1] - length} new token(s); raise max_new_tokens, and take out stopping_criteria that "
            "end an answer earlier"
        )
    whole = None if isinstance(output, Tensor) else output
    hooks.now.last_generated = GenerateOutput(sequences, predictions, whole, session.prompt.length, outputs)
    return hooks.now.last_generated


def _generate_past(model: Any, kwargs: dict[str, Any]) -> Any:
    """Generation past a `generate` of the host's own that leaves out the processors which it is given, as Janus's."""
    own = type(model).generate
    if not isinstance(model, GenerationMixin) or own is GenerationMixin.generate or "streamer" in kwargs:
        raise HostError(
            f"{type(model).__name__}.generate leaves out the logits_processor that it is given, so no task token can "
            "be placed; override Host.generate for it (patches/README.md)"
        )
    _LEAVES_OUT.add(type(model))
    return GenerationMixin.generate(model, **kwargs)


def _watchers(
    model: Any, kwargs: dict[str, Any], processor: TriggerProcessor, order: Order, keeps: bool
) -> dict[str, Any]:
    """The processors and stopping criteria of the generation: the user's, taken out of `kwargs`, and ours behind."""
    processors = LogitsProcessorList(kwargs.pop("logits_processor", None) or [])
    if order == "trigger_first":
        processors.append(processor)
    watchers: dict[str, Any] = {"logits_processor": processors}
    parameters = signature(model.generate).parameters
    takes = "stopping_criteria" in parameters or any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
    if keeps and takes:
        given = kwargs.pop("stopping_criteria", None) or []
        watchers["stopping_criteria"] = StoppingCriteriaList([*given, NoteNewest(processor.session)])
    return watchers


def _prompt_length(host: Any, kwargs: dict[str, Any]) -> int:
    """Columns of `sequences` before the answer; an encoder-decoder's answer has at least its start token before it."""
    if host.decodes:
        ids = kwargs.get(host.ids)
        return 1 if ids is None else ids.shape[1]
    ids = kwargs.get("input_ids")  # beside embeddings too: generate gives them back
    return 0 if ids is None else ids.shape[1]


def _options(model: Any, kwargs: dict[str, Any]) -> Callable[[str], Any]:
    """Generation options as generate sees them: its arguments, then its config's, then those of the model's own."""
    config = kwargs.get("generation_config") or model.generation_config
    if isinstance(model, GenerationMixin):
        given = {name: value for name, value in kwargs.items() if name != "generation_config"}
        config, _ = model._prepare_generation_config(kwargs.get("generation_config"), **given)

    def option(name: str) -> Any:
        return kwargs[name] if name in kwargs else getattr(config, name, None)

    return option


def _mask_of_padding(ids: Tensor, option: Callable[[str], Any]) -> Tensor | None:
    """The mask that generate makes of padded ids where it gets none, or None where it sees no padding."""
    pad, eos = option("pad_token_id"), _ids(option("eos_token_id"))
    if pad is None or pad in eos or ids.is_floating_point() or not (ids == pad).any():
        return None
    return ids.ne(pad).long()


def _stop(option: Callable[[str], Any], prompt_length: int) -> tuple[list[int], int | None]:
    """End-of-text ids, and the greatest length of a sequence."""
    new = option("max_new_tokens")
    return _ids(option("eos_token_id")), option("max_length") if new is None else prompt_length + new


def _ids(given: Any) -> list[int]:
    return [] if given is None else [given] if isinstance(given, int) else torch.as_tensor(given).flatten().tolist()
