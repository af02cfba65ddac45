"""A trained model by its folder, and its answers to questions: what every command that asks a model is built on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device

from tpo_plugin.apply import apply_tpo, remove_tpo
from tpo_plugin.data import TPOCollator
from tpo_plugin.data.dataset import Sample
from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.files import CONFIG_FILE
from tpo_plugin.generation.answers import Prediction, words
from tpo_plugin.hub import local_folder
from tpo_plugin.plugins import registry
from tpo_plugin.training.config import DataConfig
from tpo_plugin.training.hosts import load_host
from tpo_plugin.training.run import load_run, read_run_config

_STATED_TIME = re.compile(r"\bat\s+(\d+(?:\.\d+)?)\s*s(?:ec(?:ond)?s?)?\b", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """What a model said to one question."""

    text: str
    """Without the tokens of heads."""
    predictions: list[Prediction]
    """In the order in which their tokens stand; their columns are those of this question asked alone."""
    prompt_tokens: int = 0
    """Length of the question, in tokens."""
    start: int = 0
    """Column at which the answer begins, of this question asked alone."""
    token_ids: list[int] = field(default_factory=list)
    """The answer itself, up to the token that ends it."""
    ended: bool = True
    """Whether the model ended it; else it was cut off at `max_new_tokens`."""
    outputs: dict[str, tuple[dict[str, Any], int]] = field(default_factory=dict)
    """By head that was called, what its forward gave for this answer's task tokens, and how many these are."""


def load(
    source: str | Path, host: str | Path | None = None, *, device: torch.device | str | None = None
) -> tuple[Any, DataConfig]:
    """The model of a run (folder or hub name) or of a checkpoint of it, and how the run reads media.

    `host` says where its host lies now, if it has moved; `device` is by default a GPU where there is one. Raises as
    `load_run` does.
    """
    model = load_run(source, host=host)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), read_run_config(source).data


def load_run_or_host(
    source: str | Path, host: str | Path | None = None, heads: Sequence[str] | None = None
) -> tuple[Any, DataConfig, dict[str, str]]:
    """As `load`; a host (folder or hub name) gets heads in memory. Also what it goes without: the reason by head.

    These are `heads`, or all that need not be named and can be applied. Raises `TPOError` where none can, for `heads`
    that cannot, and for `heads` of a run, which has its own.
    """
    if host is not None or (local_folder(source) / CONFIG_FILE).is_file():
        if heads is not None:
            raise TPOError(f"{source} is a run, which has its own heads; give heads (--heads) for a host")
        return *load(source, host), {}
    model = load_host(str(source)).eval()
    left_out = {plugin.name: plugin.error for plugin in registry().plugins if plugin.error is not None}
    if heads is not None:
        return apply_tpo(model, heads=list(heads)), DataConfig(), {}
    try:
        return apply_tpo(model), DataConfig(), left_out
    except HostError:
        raise
    except Exception as error:
        chosen: list[str] = []
        for name in registry().default_heads:
            try:
                remove_tpo(apply_tpo(model, heads=[*chosen, name]))
                chosen.append(name)
            except Exception as reason:  # whatever a head of others raises
                left_out[name] = f"{type(reason).__name__}: {reason}"
        if not chosen:
            raise error
        return apply_tpo(model, heads=chosen), DataConfig(), left_out


def ask(
    model: Any,
    samples: Sequence[Sample],
    *,
    route: str | None = None,
    max_new_tokens: int,
    max_prompt_tokens: int | None = None,
    **options: Any,
) -> list[Answer]:
    """The greedy answers to prompts, generated as one batch; `route` names a head that each must call.

    `options` are other arguments of the host's `generate`, such as a streamer. Raises `TPOError`, also for a prompt of
    more than `max_prompt_tokens`.
    """
    batch = TPOCollator(model.tpo, for_generation=True, max_length=max_prompt_tokens)(samples)
    mask = batch.get("attention_mask")
    batch = send_to_device(batch, model.device)
    generated = model.tpo.generate(**batch, route=route, max_new_tokens=max_new_tokens, do_sample=False, **options)
    length, ends = generated.prompt_length, end_ids(model)
    new = generated.sequences[:, length:]
    answers = []
    for row, ids in enumerate(new.tolist()):
        num_prompt = length if mask is None else int(mask[row].sum())
        padding = 0 if model.tpo.host.decodes else length - num_prompt
        end = next((place for place, token_id in enumerate(ids) if token_id in ends), None)
        answers.append(
            Answer(
                words(model.tpo.tokenizer, ids),
                [_moved(prediction, -padding) for prediction in generated.predictions[row]],
                num_prompt,
                length - padding,
                ids if end is None else ids[: end + 1],
                end is not None,
                {head: found for head in generated.outputs if (found := generated.outputs_of(head, row))[1]},
            )
        )
    return answers


def ask_each(
    model: Any, samples: Sequence[Sample], *, route: str | None = None, max_new_tokens: int
) -> list[Answer | TPOError]:
    """As `ask`, with what is wrong with a sample in place of its answer.

    A batch that is refused as a whole, as one of clips of different shapes is, is asked one by one. Raises `HostError`.
    """
    try:
        return [*ask(model, samples, route=route, max_new_tokens=max_new_tokens)]
    except HostError:
        raise
    except TPOError as error:
        if len(samples) == 1:
            return [error]
    return [found for s in samples for found in ask_each(model, [s], route=route, max_new_tokens=max_new_tokens)]


def text_places(tokenizer: Any, answer: Answer) -> list[tuple[int, int]]:
    """For each prediction the characters [start, end) of the answer's text that lead to it."""
    places, start = [], 0
    for found in answer.predictions:
        ids = answer.token_ids[: found.text_span[1] - answer.start]
        end = len(words(tokenizer, ids))
        start += len(answer.text[start:end]) - len(answer.text[start:end].lstrip())
        places.append((start, end))
        start = end
    return places


def frame_time(given: float | None, prompt: str, duration_s: float) -> tuple[float, str]:
    """Second of the frame that boxes belong to, and where it comes from: "option", "prompt" or "middle"."""
    if given is not None:
        return given, "option"
    stated = _STATED_TIME.search(prompt)
    if stated is not None:
        return float(stated[1]), "prompt"
    return duration_s / 2, "middle"


def end_ids(model: Any) -> set[int]:
    """The tokens that end an answer."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return set() if ids is None else set(torch.as_tensor(ids).flatten().tolist())


def _moved(prediction: Prediction, columns: int) -> Prediction:
    start, end = prediction.text_span
    return replace(prediction, position=prediction.position + columns, text_span=(start + columns, end + columns))
