"""The dry run that finds hook points: on fake tensors as on the host as it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import accelerate
import pytest
import torch
import zoo
from torch._subclasses.fake_tensor import FakeTensor
from transformers import LlamaConfig, LlamaForCausalLM

from tpo_plugin import Host
from tpo_plugin.host import probe


@pytest.mark.parametrize("kind", [pytest.param(host, id=host.name) for host in zoo.HOSTS if not host.missing])
def test_a_large_host_is_found_as_a_small_one(kind: zoo.TinyHost, monkeypatch: pytest.MonkeyPatch) -> None:
    model = kind.build()
    random_state = torch.get_rng_state()
    as_it_is = Host.locate(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    monkeypatch.setattr(probe, "SMALL", -1)
    on_fakes = Host.locate(model)
    for field in dataclasses.fields(Host):
        assert getattr(on_fakes, field.name) == getattr(as_it_is, field.name), field.name


def deep_host(host_class: type[LlamaForCausalLM], ran: list[int]) -> LlamaForCausalLM:
    """Of six layers, which write their number when they run."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = host_class(LlamaConfig(vocab_size=64, num_hidden_layers=6, **sizes))
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda module, args, number=number: ran.append(number))
    return model


def test_of_layers_made_alike_few_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SMALL", -1)
    ran: list[int] = []
    model = deep_host(LlamaForCausalLM, ran)
    assert Host.locate(model).hidden is model.model.norm
    assert set(ran) == {0, 5}
    assert all("forward" not in vars(layer) for layer in model.model.layers)
    ran.clear()
    model(input_ids=torch.ones(1, 3, dtype=torch.int64))
    assert ran == [0, 1, 2, 3, 4, 5]


def test_a_host_that_needs_all_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SMALL", -1)
    ran: list[int] = []
    whole: list[int] = []

    class Counting(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            ran.clear()
            output = super().forward(*args, **kwargs)
            assert len(ran) == 6, "a layer was left out"
            whole.extend(ran)
            return output

    model = deep_host(Counting, ran)
    assert Host.locate(model).hidden is model.model.norm
    assert whole[:6] == [0, 1, 2, 3, 4, 5]


def test_layers_that_are_offloaded_keep_their_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate replaces parameters during a forward, with fake ones in the dry run."""
    monkeypatch.setattr(probe, "SMALL", -1)
    model = deep_host(LlamaForCausalLM, [])
    ids = torch.ones(1, 3, dtype=torch.int64)
    wanted = model(input_ids=ids).logits
    for layer in model.model.layers:
        accelerate.cpu_offload(layer, execution_device="cpu")
    assert Host.locate(model).hidden is model.model.norm
    assert not any(isinstance(parameter, FakeTensor) for parameter in model.parameters())
    assert torch.equal(model(input_ids=ids).logits, wanted)
