"""SAM 2's backends for the tests: a test that takes `backend_name` or `micro` runs once for each that is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tpo_head_mask.architecture import Architecture, architecture_of
from tpo_head_mask.checkpoints import _backend_class, chosen_backend
from tpo_head_mask.config import MaskConfig

import tpo_plugin as tpo


@pytest.fixture(scope="session", params=["sam2", "transformers"])
def backend_name(request: pytest.FixtureRequest) -> str:
    try:
        return chosen_backend(request.param)
    except tpo.TPOError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """Builds a backend: `build(name, architecture)`, random weights of seed 0."""

    def make(name: str, architecture: Architecture) -> Any:
        torch.manual_seed(0)
        return _backend_class(name)(architecture)

    return make


@pytest.fixture
def micro(backend_name: str, build: Callable[..., Any]) -> Any:
    """A micro SAM 2 of 64 x 64 pixels with lively random weights."""
    backend = build(backend_name, architecture_of(MaskConfig(size="micro", image_size=64)))
    with torch.no_grad():
        for parameter in backend.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return backend
