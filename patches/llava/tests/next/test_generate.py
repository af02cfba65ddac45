"""Generation from spliced embeddings: the host's own tokens, and the states of the task tokens that it feeds back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_llava import KINDS, batch, tokenizer

import tpo_plugin as tpo

NO_WORDS: list[list[int]] = [[], [], [], [], []]


@pytest.fixture
def prompts() -> dict[str, Any]:
    given = batch(KINDS, NO_WORDS, left=True)
    del given["labels"]
    return given


@pytest.fixture
def model(build: Any, echo: str) -> Any:
    return tpo.apply_tpo(build(tokenizer_padding_side="left"), tokenizer(), heads=["echo"])


def eager_for_triggers(model: Any) -> None:
    """Makes the trigger likely everywhere."""
    with torch.no_grad():
        model.tpo.embeddings["echo"].output.copy_(model.lm_head.weight[: tokenizer().vocab_size].mean(0))
        model.tpo.embeddings["echo"].output += 0.5 * torch.randn(32)


def test_the_answer_is_the_hosts(build, echo, prompts):
    bare = build(tokenizer_padding_side="left")
    ids = prompts.pop("input_ids")
    options = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": [259, 260]}
    expected = bare.generate(ids, **prompts, **options)
    model = tpo.apply_tpo(bare, tokenizer(), heads=["echo"])
    assert torch.equal(model.tpo.generate(ids, **prompts, **options).sequences, expected)
    assert torch.equal(model.generate(ids, **prompts, **options), expected)


def check_against_forward(model: Any, prompts: dict[str, Any], out: Any) -> int:
    """Every prediction's state against one forward of prompt and answer; returns how many there were."""
    trigger, task = model.tpo.token_ids["echo"]
    counted = 0
    copies = len(out.sequences) // len(prompts["input_ids"])
    assert copies == 1
    ids = torch.cat([prompts["input_ids"], out.sequences], 1)
    ended = (out.sequences == tokenizer().pad_token_id).int().cumsum(-1) > 0
    mask = torch.cat([prompts["attention_mask"], ~ended], 1)
    with torch.no_grad():
        states = model(**{**prompts, "input_ids": ids, "attention_mask": mask}).tpo.outputs["echo"]["state"]
    states = iter(states)
    for row, predictions in enumerate(out.predictions):
        for prediction in predictions:
            assert out.sequences[row, prediction.position] == (trigger if prediction.cut_off else task)
            if not prediction.cut_off:
                torch.testing.assert_close(prediction.value, next(states), rtol=1e-3, atol=1e-4)
                counted += 1
    assert next(states, None) is None
    return counted


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_predictions_are_those_of_a_forward(model, prompts, options):
    eager_for_triggers(model)
    out = model.tpo.generate(**prompts, max_new_tokens=9, do_sample=False, eos_token_id=None, **options)
    assert check_against_forward(model, prompts, out) >= 3


def test_an_answer_that_ends_with_its_task_token_is_run_once_more(model, prompts):
    out = model.tpo.generate(**prompts, max_new_tokens=2, do_sample=False, route="echo")
    assert [len(p) for p in out.predictions] == [1] * 5
    assert check_against_forward(model, prompts, out) == 5


def test_a_route_always_calls_its_head(model, prompts):
    out = model.tpo.generate(**prompts, max_new_tokens=6, do_sample=False, route="echo")
    assert all(predictions for predictions in out.predictions)
    check_against_forward(model, prompts, out)


def test_text_alone(model, prompts):
    text = {name: prompts[name][4:] for name in ("input_ids", "attention_mask")}
    out = model.tpo.generate(**text, max_new_tokens=4, do_sample=False, route="echo")
    assert check_against_forward(model, text, out) == 1


def test_a_batch_of_which_the_host_would_drop_rows_is_refused(model):
    given = batch(("text", "text"), [[], []], left=True)
    with pytest.raises(tpo.TPOError, match="kept 1 of 2 prompts"):
        model.tpo.generate(**{**given, "labels": None, "modalities": ["image"]}, max_new_tokens=2)
