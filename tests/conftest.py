"""Hosts of the zoo as fixtures, and a head that gives back the state that it is called with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from registered import registered
from torch import Tensor

import tpo_plugin as tpo


class EchoHead(tpo.TaskHead):
    """Its prediction is the task embedding itself, so that tests see what reached the head."""

    def __init__(self, config: tpo.HeadConfig, hidden_size: int) -> None:
        super().__init__()

    def forward(self, e_ND: Tensor) -> dict[str, Tensor]:
        return {"state": e_ND}

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Any], num_targets: Tensor | int) -> dict[str, Tensor]:
        return {"loss_echo": (outputs["state"] - targets["state"]).pow(2).sum() / num_targets}


@pytest.fixture
def echo() -> Iterator[str]:
    """The name of the echo head, registered during the test."""
    with registered("echo", EchoHead) as name:
        yield name


@pytest.fixture(autouse=True)
def _precision_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training arguments of older releases leave theirs to all that follow in the process."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # so that what was there before comes back
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The rows of task tokens start at random."""
    torch.manual_seed(0)
