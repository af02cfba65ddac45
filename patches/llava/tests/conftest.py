"""What the tests of both codebases share: a head, a vision tower, and a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_llava
import torch
from registered import registered


@pytest.fixture
def echo() -> Iterator[str]:
    with registered("echo", tiny_llava.EchoHead) as name:
        yield name


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.make_tower(tmp_path_factory.mktemp("llava") / "tower")
