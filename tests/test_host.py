"""Finding the hook points."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn

from tpo_plugin import Host, HostError


def test_hook_points_of_a_llama() -> None:
    model = zoo.host("llama").build()
    host = Host.locate(model)
    assert host.embed is model.model.embed_tokens
    assert host.head is model.lm_head
    assert host.hidden is model.model.norm
    assert host.hidden_size == 32
    assert host.head_gives_logits


def test_soft_capped_logits_are_not_the_heads_output() -> None:
    assert not Host.locate(zoo.host("gemma2").build()).head_gives_logits


def test_looking_changes_nothing() -> None:
    model = zoo.host("gemma3_text" if not zoo.host("gemma3_text").missing else "llama").build().train()
    modes = {name: m.training for name, m in model.named_modules()}
    before, state = zoo.snapshot(model, zoo.tokenizer()), torch.get_rng_state()
    Host.locate(model)
    assert zoo.snapshot(model, zoo.tokenizer()) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert all(p.grad is None for p in model.parameters())


class Odd(nn.Module):
    """A model whose parts can be made wrong one at a time."""

    def __init__(self, **faults: Any) -> None:
        super().__init__()
        self.embed, self.head, self.faults = nn.Embedding(50, 8), nn.Linear(8, 50), faults
        if "no_method" in faults:
            self.second = nn.Embedding(50, 8)

    def get_input_embeddings(self) -> nn.Module:
        if self.faults.keys() & {"no_method", "unsaid"}:
            raise NotImplementedError
        return self.embed

    def get_output_embeddings(self) -> nn.Module | None:
        return None if self.faults.keys() & {"no_head", "no_matrix"} else self.head

    def forward(self, input_ids: Tensor, pixels: Tensor | None = None, labels: Tensor | None = None) -> Any:
        if "needs_pixels" in self.faults and pixels is None:
            raise ValueError("pixels are missing")
        hidden = self.embed(input_ids)
        if "longer" in self.faults:
            hidden = torch.cat([hidden, hidden], 1)
        if "flat" in self.faults:
            hidden = hidden.flatten(0, 1)
        if "twice" in self.faults:
            self.head(hidden)
        if "no_matrix" in self.faults:
            return SimpleNamespace(logits=hidden.repeat(1, 1, 2), loss=None)
        return SimpleNamespace(logits=self.head(hidden), loss=None)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no_method", "has no input embedding with a weight"),
        ("no_matrix", "has no output embedding .* and no matrix that makes its logits"),
        ("twice", "ran 2 times in one forward, expected once"),
        ("flat", r"got \(4, 8\), expected \[batch, sequence, hidden\]"),
        (
            "longer",
            r"tokens of shape \(1, 4\) reach the output embedding as \(1, 8, 8\), so positions cannot be matched",
        ),
    ],
)
def test_a_host_that_cannot_be_hooked_says_why(fault: str, message: str) -> None:
    with pytest.raises(HostError, match=f"(?s){message}.*write a host adapter"):
        Host.locate(Odd(**{fault: True}))


def test_a_host_that_does_not_say_its_input_embedding_has_one_table_of_its_vocabulary() -> None:
    model = Odd(unsaid=True)
    assert Host.locate(model).embed is model.embed


def test_a_host_that_names_no_head_is_searched_for_the_matrix_of_its_logits() -> None:
    model = Odd(no_head=True)
    host = Host.locate(model)
    assert host.head is model.head
    assert host.head_gives_logits


def test_a_host_that_needs_more_than_text_is_looked_at_later() -> None:
    model = Odd(needs_pixels=True)
    host = Host.locate(model)
    assert "could not be run on four text tokens" in host.unseen
    assert "pixels are missing" in host.unseen
    assert host.head is model.head
    assert host.hidden is None
    assert host.hidden_size == 8
    assert not host.head_gives_logits


def test_example_inputs_that_do_not_run_are_refused() -> None:
    with pytest.raises(HostError, match="could not be run on input_ids .*pixels are missing"):
        Host.locate(Odd(needs_pixels=True), {"input_ids": torch.tensor([[1, 2, 3]])})


def test_example_inputs_are_for_a_host_that_needs_more() -> None:
    inputs = {"input_ids": torch.tensor([[1, 2, 3]]), "pixels": torch.zeros(1)}
    host = Host.locate(Odd(needs_pixels=True), inputs)
    assert host.hidden_size == 8
    assert host.head_gives_logits


def test_a_host_that_has_no_module_before_its_head() -> None:
    host = Host.locate(Odd())
    assert isinstance(host.hidden, nn.Embedding)  # the head's input is the embedding's output here
