"""Damages every file of a stopped run's newest checkpoint, and of a finished stage, and says what the run does then.

    python -m tests.training.damage            # a table; exits with 1 if a run ends with other weights

Each file is deleted, emptied, halved, or one bit of it flipped. A run either goes on from the checkpoint before, and is
the same as one that was never stopped, or is refused with the name of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.harm import HARMS
from tests.ranks import in_a_child
from tests.training import tiny_run
from tpo_plugin.training.run import train


def write_world(folder: Path) -> Path:
    """Two short stages, the second with three checkpoints."""
    path = tiny_run.write_world(folder, stages=["stage1", "stage2"])
    values = json.loads(path.read_text())
    for stage in values["stages"].values():
        stage |= {"save_steps": 1, "eval_data": []}
        stage["trainer"] |= {"log_level": "error"}
    values["stages"]["stage1"]["steps"], values["stages"]["stage2"]["steps"] = 1, 3
    path.write_text(json.dumps(values))
    return path


def stop_after_two_steps(config: Path) -> None:
    """In a process of its own: the third step does not come."""
    tiny_run.PointHead.num_forwards = 0
    os.environ |= {"AT": "7", "SIGNAL_AT": "9"}  # 2 forwards in each step, and one step in the first stage
    train(config)


def weights(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in ("adapter_model.safetensors", "tpo_model.safetensors")]


def outcome(straight: Path, stopped: Path, name: str, harm: Callable[[Path], Any], log: Path) -> str:
    """What a run does after the damage; in capitals what it must not do."""
    shutil.rmtree(straight / "run", ignore_errors=True)
    shutil.copytree(stopped, straight / "run")
    harm(straight / "run" / name)
    log.unlink(missing_ok=True)
    status = os.waitstatus_to_exitcode(os.waitpid(in_a_child(lambda: train(straight / "config.yaml"), log), 0)[1])
    text = log.read_text()
    short = Path(name).name
    if status:
        last = text.strip().splitlines()[-1]
        named = short in last or "manifest.json" in last
        return "refused by name" if "TPOError" in text and named else f"RAW: {last}"
    if weights(straight / "run") != weights(straight / "finished"):
        return "DIFFERENT"
    return "the one before is taken" if "is passed over" in text else "THE SAME, WITHOUT A WORD"


def main() -> None:
    """Prints a line for each file and damage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="only every so many-th pair of a file and a damage")
    every = parser.parse_args().every
    tiny_run.install_head()
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        base, log = Path(folder), Path(folder, "log")
        config = write_world(base)
        stopped = base / "stopped"
        os.waitpid(in_a_child(lambda: stop_after_two_steps(config), log), 0)
        (base / "run").rename(stopped)
        status = os.waitpid(in_a_child(lambda: train(config), log), 0)[1]
        assert status == 0, log.read_text()[-3000:]
        (base / "run").rename(base / "finished")
        newest = max((stopped / "stage2").glob("checkpoint-*"))
        places = (newest, stopped / "stage1" / "final")
        paths = sorted(path for place in places for path in place.rglob("*") if path.is_file())
        pairs = [(str(path.relative_to(stopped)), harm) for path in paths for harm in HARMS]
        for name, harm in pairs[::every]:
            found = outcome(base, stopped, name, harm, log)
            counts[found] += 1
            print(f"{name} {harm.__name__}: {found}", flush=True)
    print(dict(counts))
    sys.exit(any(text.isupper() or text.startswith("RAW") for text in counts))


if __name__ == "__main__":
    main()
