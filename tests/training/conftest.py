"""Makes `tiny_run` importable, as test files are imported by their path, and takes its head back afterwards."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tpo_plugin import registry, unregister_plugin

_spec = importlib.util.spec_from_file_location("tiny_run", Path(__file__).with_name("tiny_run.py"))
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules["tiny_run"] = _module
_spec.loader.exec_module(_module)


@pytest.fixture(autouse=True, scope="module")
def _take_the_head_back() -> Iterator[None]:
    """Other tests of this process list the installed heads, or register one of the same name."""
    yield
    if "point" in registry().heads:
        unregister_plugin("point")
