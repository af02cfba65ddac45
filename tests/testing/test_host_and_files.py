"""The conformance kit on heads that change the host, and on files that hold something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from good_head import GoodConfig, GoodHead
from torch import nn
from torch.nn import functional as F

import tpo_plugin as tpo
from tpo_plugin.testing import heads as testing


def test_changing_the_host_fails(kit, monkeypatch):
    monkeypatch.setattr(nn.Linear, "forward", nn.Linear.forward)  # put back whatever the head does to it

    def patching(self: Any, config: GoodConfig, hidden_size: int) -> None:
        GoodHead.__init__(self, config, hidden_size)
        nn.Linear.forward = lambda module, x: F.linear(x, module.weight, module.bias) * 1.001

    with pytest.raises(AssertionError, match="applying the head changes the host's outputs"):
        kit(type("Bad", (GoodHead,), {"__init__": patching})).test_host_is_left_alone()


def test_changing_the_host_in_a_forward_fails(kit, monkeypatch):
    monkeypatch.setattr(nn.Linear, "forward", nn.Linear.forward)

    def patching(self: Any, e_ND: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = GoodHead.forward(self, e_ND)
        nn.Linear.forward = lambda module, x: F.linear(x, module.weight, module.bias) * 1.001
        return outputs

    with pytest.raises(AssertionError, match="a forward with task tokens changes the host's outputs"):
        kit(type("Bad", (GoodHead,), {"forward": patching})).test_host_is_left_alone()


def test_a_removal_that_leaves_something_fails(kit, monkeypatch):
    monkeypatch.setattr(testing, "remove_tpo", lambda model: model)
    with pytest.raises(AssertionError, match="after remove_tpo the host's weights differ"):
        kit().test_host_is_left_alone()


@pytest.mark.parametrize(
    ("part", "leave"),
    [
        ("requires_grad flags", lambda model: model.lm_head.requires_grad_(False)),
        ("training flags", lambda model: model.train()),
        ("attributes", lambda model: setattr(model, "forward", model.forward)),
        ("hooks", lambda model: model.lm_head.register_forward_hook(lambda *args: None)),
    ],
)
def test_what_a_removal_leaves_is_named(kit, monkeypatch, part, leave):
    def remove(model: Any) -> None:
        tpo.remove_tpo(model)
        leave(model)

    monkeypatch.setattr(testing, "remove_tpo", remove)
    with pytest.raises(AssertionError, match=f"after remove_tpo the host's {part} differ"):
        kit().test_host_is_left_alone()


def test_a_file_with_other_weights_fails(kit, monkeypatch, tmp_path):
    from safetensors.torch import save_file

    def save_pretrained(self: Any, directory: Path) -> None:
        save_file({"model.norm.weight": torch.zeros(2)}, directory / "tpo_model.safetensors")

    monkeypatch.setattr(tpo.TaskPreferenceModel, "save_pretrained", save_pretrained)
    with pytest.raises(AssertionError, match=r"more than the head's and its tokens' weights: \['model.norm.weight'\]"):
        kit().test_save_and_load(tmp_path)


def test_loading_other_weights_fails(kit, monkeypatch, tmp_path):
    def load(model: Any, directory: Path, tokenizer: Any) -> Any:
        loaded = tpo.load_tpo(model, directory, tokenizer)
        loaded.tpo.heads["under_test"].proj.weight.data[0, 0] += 1e-3
        return loaded

    monkeypatch.setattr(testing, "load_tpo", load)
    with pytest.raises(
        AssertionError, match=r"weights differ after saving and loading: \['heads.under_test.proj.weight'\]"
    ):
        kit().test_save_and_load(tmp_path)
