"""Batches without a label, or without a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo

from tpo_plugin import TPOError, apply_tpo


@pytest.fixture
def model() -> Any:
    return apply_tpo(zoo.host("llama").build(), zoo.tokenizer(), ["region"])


@pytest.mark.parametrize("training", [False, True])
def test_labels_that_are_all_ignored_give_no_loss_and_no_gradient(model: Any, training: bool) -> None:
    ids = torch.full((2, 6), zoo.FIRST_WORD)
    labels = torch.full_like(ids, -100)
    assert torch.isnan(zoo.host("llama").build()(input_ids=ids, labels=labels).loss)  # a mean over nothing
    out = model.train(training)(input_ids=ids, labels=labels)
    assert out.loss.item() == 0
    assert out.tpo.losses["mllm"].item() == 0
    out.loss.backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_other_labels_give_the_hosts_loss_exactly(model: Any) -> None:
    ids = torch.arange(zoo.FIRST_WORD, zoo.FIRST_WORD + 12).view(2, 6)
    labels = ids.clone()
    labels[0] = -100
    expected = zoo.host("llama").build()(input_ids=ids, labels=labels).loss
    assert torch.equal(model(input_ids=ids, labels=labels).loss, expected)


def test_a_batch_without_rows_is_refused(model: Any) -> None:
    ids = torch.zeros(0, 5, dtype=torch.int64)
    with pytest.raises(TPOError, match=r"the batch is empty: its ids have the shape \[0, 5\]; expected rows"):
        model(input_ids=ids, labels=ids)
    for prompt in (ids, torch.zeros(2, 0, dtype=torch.int64)):
        with pytest.raises(TPOError, match=r"the batch is empty: the prompt has the shape"):
            model.tpo.generate(input_ids=prompt, max_new_tokens=2)
