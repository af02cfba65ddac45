"""500 requests of 16 clients at once: the benchmark's own run, at a tiny size."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("openai")
pytest.importorskip("starlette")

from benchmarks.serve import show, single_calls, under_load


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the server's memory from /proc")
def test_many_clients_get_what_single_calls_get(world: Path, tmp_path: Path) -> None:
    cases = single_calls(world / "run", tmp_path)
    result = under_load(world / "run", cases, 500, 16)
    show(result, cases, 16)
    assert not result.wrong
    assert result.statuses[200] == 475
    assert sum(result.statuses.values()) == 500
    assert len(result.memory_mb) == 10
    assert result.memory_mb[-1] - result.memory_mb[2] < 50  # of what takes hundreds; a picture leaked each time is more
