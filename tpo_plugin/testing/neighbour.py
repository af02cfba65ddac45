"""A head that stands beside the one under test. N = task tokens in the batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from tpo_plugin.config import HeadConfig
from tpo_plugin.head import Linear, TaskHead
from tpo_plugin.hookspecs import hookimpl
from tpo_plugin.plugins import register_plugin, unregister_plugin


class _NeighbourHead(TaskHead):
    def __init__(self, config: HeadConfig, hidden_size: int) -> None:
        super().__init__()
        self.proj = Linear(hidden_size, 1)

    def forward(self, e_ND: Tensor) -> dict[str, Tensor]:
        return {"value": self.proj(e_ND)}

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Any], num_targets: Tensor | int) -> dict[str, Tensor]:
        return {"loss_neighbour": F.mse_loss(outputs["value"], targets["value"], reduction="sum") / num_targets}


class _NeighbourPlugin:
    name = "kit_neighbour"

    @hookimpl
    def register_heads(self, register: Callable[..., None]) -> None:
        register(self.name, head=_NeighbourHead, trigger="<kit_neighbour_begin>", task_token="<kit_neighbour>")


@contextlib.contextmanager
def neighbour() -> Iterator[str]:
    """Registers a head in this process, for the time of a test, and gives its name."""
    register_plugin(_NeighbourPlugin(), _NeighbourPlugin.name)
    try:
        yield _NeighbourPlugin.name
    finally:
        unregister_plugin(_NeighbourPlugin.name)
