"""Tokens: their ids, their rows and their places in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from transformers import PreTrainedTokenizerFast

from tpo_plugin import TPOError, apply_tpo
from tpo_plugin.positions import Positions, token_positions
from tpo_plugin.tokens import HeadTokens, add_tokens

TOKENS = {
    "a": HeadTokens("<a_begin>", "<a>", None, 40, 41, None),
    "b": HeadTokens("<b_begin>", "<b>", "<b_in>", 42, 43, 44),
}


def test_positions_are_ordered_by_row_and_column() -> None:
    input_ids = torch.tensor([[44, 9, 40, 41, 42, 43, 40, 41], [40, 41, 9, 9, 9, 9, 9, 40]])
    labels = torch.tensor([[-100, -100, 40, -100, 42, -100, 40, -100], [40, -100, 9, 9, 9, 9, 9, 40]])
    assert token_positions(input_ids, labels, TOKENS) == Positions(
        shape=(2, 8),
        trigger={"a": [(0, 2), (0, 6), (1, 0), (1, 7)], "b": [(0, 4)]},
        task={"a": [(0, 3), (0, 7), (1, 1)], "b": [(0, 5)]},
        input={"a": [], "b": [(0, 0)]},
        labels=[(0, 2), (0, 4), (0, 6), (1, 7)],  # nothing comes before column 0
    )


def test_a_batch_without_our_tokens() -> None:
    found = token_positions(torch.full((2, 3), 9), None, TOKENS)
    assert found.labels == []
    assert not any(places for kind in ("trigger", "task", "input") for places in found.of(kind).values())


class Splitting(PreTrainedTokenizerFast):
    """A tokenizer that takes added tokens apart."""

    def encode(self, text: Any, **kwargs: Any) -> list[int]:
        return [8, 9]


def test_a_token_that_is_split_is_refused_and_taken_back() -> None:
    tokenizer = zoo.tokenizer()
    tokenizer.__class__ = Splitting
    before = tokenizer.backend_tokenizer.to_str()
    names = {"a": {"trigger": "<a_begin>", "task_token": "<a>", "input_token": None}}
    with pytest.raises(TPOError, match=r"'<a_begin>' is split by the tokenizer into ids \[8, 9\]"):
        add_tokens(tokenizer, names)
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_rows_lie_over_the_matrices(tied: bool) -> None:
    """The host with TPO gives the logits of a host whose matrices hold the rows."""
    kind = zoo.host("llama")
    model = apply_tpo(kind.build(tie_word_embeddings=tied), zoo.tokenizer(), ["region"])
    zoo.talkative(model)
    batch = zoo.with_tasks(kind, model, zoo.example(kind, model))
    trigger, task = model.tpo.token_ids["region"]
    rows = model.tpo.embeddings["region"]
    reference = kind.build(tie_word_embeddings=tied)
    embed = reference.get_input_embeddings().weight.data.clone()
    head = reference.get_output_embeddings().weight.data.clone()
    embed[trigger], embed[task] = rows.trigger.data, rows.task.data
    head[trigger] += rows.output.data
    inputs = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        ours = model(**inputs).logits
        hidden = reference.model(inputs_embeds=embed[inputs["input_ids"]]).last_hidden_state
    torch.testing.assert_close(ours, hidden @ head.T, atol=1e-5, rtol=1e-5)


def test_the_matrices_need_no_gradient() -> None:
    kind = zoo.host("llama")
    model = apply_tpo(kind.build(), zoo.tokenizer(), ["region"]).train()
    batch = zoo.with_tasks(kind, model, zoo.example(kind, model))
    model(**batch, task_targets={"region": {"boxes_xyxy": zoo.boxes(4)}}).loss.backward()
    trigger, task = model.tpo.token_ids["region"]
    # The covered rows of a trainable embedding get nothing: they took no part.
    assert not model.get_input_embeddings().weight.grad[[trigger, task]].any()
    assert model.get_input_embeddings().weight.grad.any()


def test_rows_start_near_the_hosts_own() -> None:
    model = apply_tpo(zoo.host("llama").build(), zoo.tokenizer(), ["region"])
    rows = model.tpo.embeddings["region"]
    weight = model.get_input_embeddings().weight
    assert rows.task.std().item() == pytest.approx(weight.std().item(), rel=0.5)
    assert not rows.output.any()
    assert not torch.equal(rows.task, rows.trigger)
