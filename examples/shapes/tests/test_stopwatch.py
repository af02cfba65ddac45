"""Seconds add up over calls, and what was written is there when a call is killed."""

import json
import time

from tpo_shapes.stopwatch import Stopwatch


def test_calls_add_up(tmp_path):
    now = [100.0]
    for spent in (5.0, 7.0):
        with Stopwatch(tmp_path / "a", lambda: now[0]) as clock:
            now[0] += spent
        now[0] += 1000
    assert (clock.seconds, clock.calls) == (12.0, 2)
    assert json.loads((tmp_path / "a").read_text()) == {"seconds": 12.0, "calls": 2}


def test_it_writes_while_it_runs(tmp_path):
    path = tmp_path / "a"
    with Stopwatch(path, time.monotonic, every_s=0.01):
        until = time.monotonic() + 20
        while not path.is_file() and time.monotonic() < until:
            time.sleep(0.01)
        assert json.loads(path.read_text())["calls"] == 1
