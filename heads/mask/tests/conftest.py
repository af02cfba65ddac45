"""SAM 2's backends for the tests: a test that takes `backend_name` or `micro` runs once for each that is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from downloads import SIZE, labels, picture
from tpo_head_mask import rle
from tpo_head_mask.architecture import Architecture, architecture_of
from tpo_head_mask.checkpoints import _backend_class, chosen_backend
from tpo_head_mask.config import MaskConfig

import tpo_plugin as tpo
from tpo_plugin.convert import convert, formats
from tpo_plugin.data import RecordFormat, Records


@pytest.fixture(scope="session", params=["sam2", "transformers"])
def backend_name(request: pytest.FixtureRequest) -> str:
    try:
        return chosen_backend(request.param)
    except tpo.TPOError as error:
        pytest.skip(str(error))  # which names the package that this backend needs


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


def mask_of(y1: int, x1: int, y2: int, x2: int) -> rle.RLE:
    mask = np.zeros(SIZE, bool)
    mask[y1:y2, x1:x2] = True
    return rle.encode(mask)


def records_of(path: Path, losses: tuple[str, ...] = ("pixel", "prompt"), **options: Any) -> Records:
    config = tpo.TPOConfig(heads={"mask": {"losses": list(losses)}})
    return Records(path, RecordFormat.of_heads(["mask"], config), **options)


def outcome(name: str, output: Path, **options: Any) -> tuple[list[dict[str, Any]], str]:
    """The records that a source gives, and what is said of it; what is written is what the head takes."""
    try:
        report = convert(formats()[name].format_class()(**options), output)
    except tpo.TPOError as error:
        assert not list(output.parent.glob(f".{output.name}*"))
        return [], str(error)
    assert len(records_of(output, open_ended=True)) == report.written
    return [json.loads(line) for line in output.read_text().splitlines()], str(report)


@pytest.fixture(scope="session")
def data() -> Any:
    """What tests of formats make their sources with."""
    return SimpleNamespace(
        size=SIZE,
        picture=picture,
        labels=labels,
        mask_of=mask_of,
        outcome=outcome,
        records_of=records_of,
    )
