"""Trains over many records of which one in a hundred is bad, after `tpo check` has listed them.

    python -m tests.training.many_records --count 200000

Exits with 1 where a bad record is not listed, is not reported at the end of the run, or stops it below `max_bad_share`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.ranks import ROOT
from tests.training import tiny_run
from tpo_plugin.training.run import read_run

BAD = {
    "a line that is no JSON": lambda record: json.dumps(record)[:-2],
    "no conversation": lambda record: json.dumps({key: record[key] for key in ("id", "tasks")}),
    "a picture too many": lambda record: json.dumps(record | {"image": "gone.png"}),
    "a task too few": lambda record: json.dumps(record | {"tasks": []}),
    "a head that is none": lambda record: json.dumps(record | {"tasks": [{"head": "line", "points_xy": [0, 0]}]}),
}
"""What is wrong with every hundredth record, in turn."""


def write_world(folder: Path, count: int) -> Path:
    """One epoch over `count` records."""
    path = tiny_run.write_world(folder, stages=["stage2"], data={"max_bad_share": 0.02})
    values = json.loads(path.read_text())
    data = [{"file": str(folder / "many.jsonl")}]
    stage = {"data": data, "eval_data": [], "epochs": 1.0, "batch_size": 64, "micro_batch_size": 64}
    stage |= {"save_steps": 1000, "logging_steps": 200}
    values["stages"]["stage2"] |= stage
    path.write_text(json.dumps(values))
    turns = [{"from": "human", "value": "where is it"}, {"from": "gpt", "value": "it stands here <point>"}]
    kinds = list(BAD.values())
    with (folder / "many.jsonl").open("w", encoding="utf-8") as file:
        for index in range(count):
            tasks = [{"head": "point", "points_xy": [index % 7 / 7, index % 5 / 5]}]
            record = {"id": f"r{index}", "conversations": turns, "tasks": tasks}
            number, rest = divmod(index, 100)
            file.write((kinds[number % len(kinds)](record) if rest == 50 else json.dumps(record)) + "\n")
    return path


def tpo(*arguments: object) -> tuple[subprocess.CompletedProcess[str], float]:
    """A command of `tpo`, and its seconds."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, tiny_run.__file__, "cli", *map(str, arguments)], capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done, time.monotonic() - began


def main(count: int) -> bool:
    """Whether all was as it is to be; prints what was found."""
    bad = [index + 1 for index in range(count) if index % 100 == 50]
    with tempfile.TemporaryDirectory() as name:
        config = write_world(Path(name), count)
        checked, seconds = tpo(
            "check", "--heads", "point", "--media", "--json", "--limit-errors", count, Path(name, "many.jsonl")
        )
        errors = json.loads(checked.stdout)["errors"]
        listed = sorted(int(place.split(":")[1]) for error in errors for place in error["first"])
        print(f"tpo check: exit status {checked.returncode}, {seconds:.0f} s, {len(listed)} listed")
        trained, seconds = tpo("train", config)
        if trained.returncode:
            print(trained.stderr[-3000:])
            return False
        summary, *skipped = read_run(Path(name, "run"))["stages"]["stage2"]["media"].splitlines()
        print(f"tpo train: {seconds:.0f} s; {summary}", *skipped[:4], sep="\n")
    lines = sorted(int(re.search(r"many\.jsonl:(\d+)", line)[1]) for line in skipped)
    return checked.returncode == 1 and listed == lines == bad


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200_000)
    sys.exit(not main(parser.parse_args().count))
