"""The page's commands, from the first to the last, at a tiny size."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin.training.run import read_run

pytestmark = pytest.mark.filterwarnings("default")

EXAMPLE = Path(__file__).parents[1]
FEW = {"--pictures 300": "--pictures 5", "--held-out 100": "--held-out 3"}


def lines() -> list[str]:
    page = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    return [
        line.strip() for block in re.findall(r"<!-- commands -->\n((?:    .+\n)+)", page) for line in block.splitlines()
    ]


def run_line(line: str) -> str:
    """What a line of the page prints, in the present folder."""
    program, *arguments = shlex.split(line)
    if program != "tpo":
        done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
        return done.stdout
    result = CliRunner().invoke(tpo_plugin.cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, f"{line}\n{result.output}"
    return result.output


def shorten(path: Path, **values: Any) -> None:
    """Sets keys of all stages of a training file."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for stage in config["stages"].values():
        stage |= values
    path.write_text(yaml.safe_dump(config), encoding="utf-8")


@pytest.mark.slow
def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EXAMPLE, "examples/own_data", ignore=shutil.ignore_patterns("tests"))
    few = {"steps": 1, "batch_size": 2, "micro_batch_size": 2, "eval_generations": 2}
    shorten(Path("examples/own_data/train.yaml"), **few)
    printed = {}
    for line in lines():
        for long, short in FEW.items():
            line = line.replace(long, short)
        if line == "tpo train first.yaml":
            shorten(Path("first.yaml"), **few)
        printed[line] = run_line(line)
    names = [line.split()[1] for line in printed if line.startswith("tpo ")]
    assert names == ["convert", "convert", "check", "init", "train", "doctor", "train", "eval", "doctor"]
    records = [json.loads(line) for line in Path("data/train/boxes.jsonl").read_text().splitlines()]
    boxes = json.loads(Path("data/train/boxes.json").read_text())["annotations"]
    assert len(records) == len(boxes) >= 10
    assert (
        "none wrong" in printed["tpo check data/train/boxes.jsonl data/train/chat.jsonl --media --pictures sheet.png"]
    )
    assert "about as good as the best prediction that is always the same" in printed["tpo doctor runs/first"]
    assert list(read_run("runs/own")["stages"]) == ["stage1", "stage2", "stage3"]
    splits = json.loads(Path("runs/own/eval/boxes-chat/results.json").read_text())["splits"]
    assert splits["data/held_out/boxes.jsonl"]["heads"]["region"]["metrics"]["mean_iou"] >= 0
