"""The real classes of the original LLaVA as tiny random hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_llava
import torch
from registered import registered

if tiny_llava.package_of("original") is None:
    collect_ignore_glob = ["test_*.py"]


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


@pytest.fixture
def build(tower: Path) -> Callable[..., Any]:
    """build(**config) -> the host."""
    return lambda **more: tiny_llava.build("original", tower, **more)
