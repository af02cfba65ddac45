"""docs/layers.svg shows the layers and imports that there are."""

from __future__ import annotations

import ast

import pytest

pytest.importorskip("tomllib")

import layers


def test_the_picture_is_that_of_the_imports() -> None:
    assert layers.PICTURE.read_text() == layers.picture(), "run python -m tests.layers"


def test_imports_are_read_as_python_reads_them() -> None:
    source = """
from typing import TYPE_CHECKING
import tpo_plugin.host.splice
from tpo_plugin import zero, hookimpl
if TYPE_CHECKING:
    from tpo_plugin.model import TaskPreferenceModel
def late():
    from tpo_plugin.data.media import read_video
"""
    modules = ["model", "host", "host.splice", "data", "zero", "zero_two"]
    owners = {layers._owner(name, modules) for name in layers._names(ast.parse(source))}
    assert owners == {None, "host.splice", "zero", "data"}
