"""Checks of the kit that need no tiny host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor

from tpo_plugin.hookspecs import PROJECT
from tpo_plugin.plugins import BLOCK_VARIABLE, HeadSpec


def check_clean_process(spec: HeadSpec, heavy: Sequence[str]) -> None:
    """A clean process finds the head by entry point, and imports none of the `heavy` packages for it."""
    others = {point.name for point in entry_points(group=PROJECT)} - {spec.plugin.name}
    code = (
        "import json, sys; from tpo_plugin import registry; "
        f"spec = registry().heads.get({spec.name!r}); "
        f"print(json.dumps([spec and spec.plugin.name, sorted(set({list(heavy)!r}) & set(sys.modules))]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, BLOCK_VARIABLE: ",".join(sorted(others))},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"a clean process could not load the plugins:\n{result.stderr}"
    plugin, imported = json.loads(result.stdout.splitlines()[-1])
    assert plugin == spec.plugin.name, (
        f"a clean process finds no head {spec.name!r} by entry point:\n{result.stderr or '(nothing on stderr)'}"
    )
    assert not imported, (
        f"importing plugin {plugin!r} imports {imported}, which is on the heavy list; register the head as "
        "'module:Class' and import heavy packages in that module"
    )


def check_outputs(outputs: Any, num: int) -> None:
    """A dict of finite float32 tensors, each with `num` rows."""
    assert isinstance(outputs, dict), f"forward gives a {type(outputs).__name__}; expected a dict of tensors"
    assert outputs, "forward gives an empty dict"
    for name, value in outputs.items():
        assert isinstance(value, Tensor), f"output {name!r} is a {type(value).__name__}; expected a tensor"
        shape = tuple(value.shape)
        assert shape[:1] == (num,), f"output {name!r} is of shape {shape} for {num} task tokens; expected ({num}, ...)"
        assert value.dtype == torch.float32, f"output {name!r} is {value.dtype}; expected float32"
        assert value.isfinite().all(), f"output {name!r} is not finite for {num} task tokens"
