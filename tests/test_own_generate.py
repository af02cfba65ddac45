"""The host's own `generate` of a model with TPO, as a pipeline, a trainer or a script calls it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, pipeline

import tpo_plugin as tpo
from tpo_plugin.errors import HostError
from tpo_plugin.tiny import tiny_host

PROMPT = torch.tensor([[0, 1, 4, 5, 6], [1, 4, 5, 6, 7]])
MASK = PROMPT.ne(0).long()


class Emits(LogitsProcessor):
    """Makes a host, which was never trained, emit `token` at some columns, and end at another."""

    def __init__(self, token: int, columns: tuple[int, ...], end: int) -> None:
        self.token, self.columns, self.end = token, columns, end

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        column = input_ids.shape[1]
        if column in (*self.columns, self.end):
            scores = torch.full_like(scores, -100.0)
            scores[:, self.token if column in self.columns else 2] = 0
        return scores


@pytest.fixture
def model(echo: str) -> Any:
    model, tokenizer = tiny_host()
    return tpo.apply_tpo(model, tokenizer, heads=[echo])


def asked(model: Any, **changes: Any) -> dict[str, Any]:
    emits = Emits(model.tpo.token_ids["echo"][0], (6,), 10)
    options = {"input_ids": PROMPT, "attention_mask": MASK, "logits_processor": [emits], "max_new_tokens": 8}
    return options | {"do_sample": False} | changes


@pytest.mark.parametrize("ways", [{}, {"num_beams": 2}, {"do_sample": True}, {"return_dict_in_generate": True}])
def test_it_is_as_tpo_generate(model, ways):
    torch.manual_seed(1)
    expected = model.tpo.generate(**asked(model, **ways))
    torch.manual_seed(1)
    result = model.generate(**asked(model, **ways))
    assert torch.equal(result["sequences"] if "return_dict_in_generate" in ways else result, expected.sequences)
    trigger, task = model.tpo.token_ids["echo"]
    assert expected.sequences[:, 6:8].tolist() == [[trigger, task]] * 2
    kept = model.tpo.last_generated
    assert kept is not expected
    for ours, theirs in zip(kept.predictions, expected.predictions, strict=True):
        assert [p.position for p in ours] == [p.position for p in theirs] == [7]
        torch.testing.assert_close(ours[0].value, theirs[0].value)


def test_arguments_by_position(model):
    config = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0)
    emits = asked(model)["logits_processor"]
    given = model.generate(PROMPT, config, emits, attention_mask=MASK)
    assert torch.equal(given, model.generate(**asked(model)))


def test_an_answer_without_triggers_is_the_bare_hosts(model):
    bare, _ = tiny_host()
    options = {"input_ids": PROMPT, "attention_mask": MASK, "max_new_tokens": 6}
    torch.manual_seed(2)
    expected = bare.generate(**options, do_sample=True, top_k=3)
    torch.manual_seed(2)
    assert torch.equal(model.generate(**options, do_sample=True, top_k=3), expected)
    assert model.tpo.last_generated.predictions == [[], []]


def test_from_nothing(model):
    """Without a prompt the host begins by itself."""
    assert model.generate(max_new_tokens=3, do_sample=False).shape[0] == 1


def test_a_host_that_cannot_warns_once(model, monkeypatch):
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise HostError("it leaves out the processors")

    monkeypatch.setattr("tpo_plugin.generation.own.generate", fails)
    with pytest.warns(UserWarning, match="LlamaForCausalLM.generate answers without heads: it leaves out"):
        answer = model.generate(**asked(model))
    assert answer.shape[0] == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(**asked(model))


def test_removed_with_tpo(model):
    assert "generate" in vars(model)
    tpo.remove_tpo(model)
    assert "generate" not in vars(model)


@pytest.mark.skipif(not hasattr(GenerationMixin, "generate_batch"), reason="this transformers has no generate_batch")
def test_continuous_batching_is_refused_while_tpo_is_on(model):
    with pytest.raises(tpo.TPOError, match=r"generate_batch\) puts no task token behind a trigger"):
        model.generate_batch([[5, 6, 7]], max_new_tokens=2)
    tpo.remove_tpo(model)
    assert "init_continuous_batching" not in vars(model)


def test_in_a_pipeline(model):
    ask = pipeline("text-generation", model=model, tokenizer=model.tpo.tokenizer, device="cpu")
    processors = [Emits(model.tpo.token_ids["echo"][0], (4,), 8)]
    options = {"max_new_tokens": 8, "do_sample": False, "logits_processor": processors}
    (answer,) = ask("where is it", return_full_text=False, **options)
    ((prediction,),) = model.tpo.last_generated.predictions
    assert prediction.head == "echo"
    assert "<echo_" not in answer["generated_text"]
