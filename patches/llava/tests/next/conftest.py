"""The real classes of LLaVA-NeXT, or of a derivative, as tiny random hosts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_llava

if tiny_llava.package_of("next") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def build(tower: Path) -> Callable[..., Any]:
    """build(**config) -> the host."""
    return lambda **more: tiny_llava.build("next", tower, **more)
