"""A head that passes the conformance kit, and the kit for it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import tpo_plugin as tpo
from tpo_plugin.testing import TaskHeadTests

STANDARD_TESTS = [name for name in vars(TaskHeadTests) if name.startswith("test_")]


@dataclass(kw_only=True)
class GoodConfig(tpo.HeadConfig):
    scale: float = 1.0
    """Factor of the output."""


class GoodHead(tpo.TaskHead):
    fields = ("points_xy",)

    def __init__(self, config: GoodConfig, hidden_size: int) -> None:
        super().__init__()
        self.scale = config.scale
        self.proj = tpo.Linear(hidden_size, 2)

    def forward(self, e_ND):
        return {"points_xy": self.scale * self.proj(e_ND).sigmoid()}

    def loss(self, outputs, targets, num_targets):
        diff = F.l1_loss(outputs["points_xy"], targets["points_xy"], reduction="sum")
        return {"loss_point_l1": diff / num_targets}


class Kit(TaskHeadTests):
    head = "under_test"

    def make_targets(self, num: int) -> dict[str, Any]:
        return {"points_xy": torch.rand(num, 2)}

    def make_task(self) -> dict[str, Any]:
        return {"points_xy": [0.3, 0.7]}


def run(kit: Kit, name: str, tmp_path: Path) -> None:
    test = getattr(kit, name)
    test(tmp_path) if "tmp_path" in inspect.signature(test).parameters else test()
