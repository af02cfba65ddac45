"""The short form of `kills`, and of `damage`: the long ones are commands."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def command(module, *arguments):
    """What it printed; it ends with 1 where a run is different or cannot go on."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.training.{module}", *arguments],
        cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("engine", ["one", "ddp", "fsdp", "zero2", "zero3"])
def test_killed_runs_end_as_one_that_was_never_stopped(engine):
    if engine.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed, which .ci/run installs for this")
    assert "DIFFERENT" not in command("kills", "--count", "4", "--engine", engine)


def test_damaged_checkpoints_are_never_used():
    table = command("damage", "--every", "7")
    assert "the one before is taken" in table
    assert "refused by name" in table
