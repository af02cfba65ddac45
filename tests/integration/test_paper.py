"""examples/paper: its files are those that its commands make, and every stage is stepped on tiny records of each."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import onevision
import pytest
import torch
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin import VideoOptions
from tpo_plugin.convert import formats
from tpo_plugin.training.config import TrainConfig
from tpo_plugin.training.run import read_run, train

pytestmark = [
    pytest.mark.skipif(
        not {"region", "temporal", "mask"} <= set(tpo_plugin.registry().heads), reason="needs all heads"
    ),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:mtime may not be reliable"),  # checkpoints of one moment
]

EXAMPLE = onevision.ROOT / "examples" / "paper"
CONFIG = EXAMPLE / "stages.yaml"
README = (EXAMPLE / "README.md").read_text(encoding="utf-8")
AS_THEY_ARE = {"data/sharegpt4v.json", "data/gpt-4o.jsonl"}
TASKS: dict[str, Any] = {
    "region": onevision.BOX,
    "temporal": onevision.MOMENT,
    "mask": {"head": "mask", "masks": [{"size": [2, 2], "counts": [0, 4]}], "times": [0.0]},
}


def commands() -> list[list[str]]:
    found = re.search(r"<!-- commands: paper -->\n((?:    .+\n)+)", README)
    assert found
    return [shlex.split(line)[2:] for line in found[1].splitlines()]


def files() -> list[str]:
    stages = TrainConfig.from_yaml(CONFIG).stages.values()
    return list(dict.fromkeys(source.file for stage in stages for source in stage.data))


def test_every_file_is_made_by_a_command_or_read_as_it_is() -> None:
    made = {command[-1] for command in commands()}
    assert made | AS_THEY_ARE == set(files())
    assert all(file in README for file in ("sharegpt4v.json", "gpt-4o.jsonl"))


@pytest.mark.parametrize("command", commands(), ids=lambda command: Path(command[-1]).stem)
def test_a_command_is_one(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused is that nothing is there, and no option."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(tpo_plugin.cli.app, ["convert", *command])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, tpo_plugin.TPOError), result.exception
    assert command[0] in formats()


def test_every_missing_file_is_named_before_anything_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(tpo_plugin.cli.app, ["check", "--config", str(CONFIG)])
    assert result.exit_code == 1
    named = re.findall(r"^  (data/\S+): cannot be read: No such file or directory$", result.stdout, re.MULTILINE)
    assert named == files()


def test_amounts_are_the_paper_s() -> None:
    """By sizes that the sets' authors publish: expressions, regions, masklets by hand, sentences; in thousands."""
    sizes = {"refcoco": 120.6, "refcoco+": 120.2, "refcocog": 80.5, "sa-v": 190.9, "mevis": 23.1, "visual-genome": 5409}
    stages = TrainConfig.from_yaml(CONFIG).stages

    def amount(stage: str, *names: str) -> float:
        weights = {Path(source.file).stem: source.weight for source in stages[stage].data}
        return sum(weights[name] * sizes[name] for name in names)

    assert amount("stage1", "refcoco", "refcoco+", "refcocog") == pytest.approx(50, rel=0.02)
    assert amount("stage1", "sa-v", "mevis") == pytest.approx(50, rel=0.02)
    assert amount("stage2", "sa-v", "mevis") == pytest.approx(3 * 114.6, rel=0.02)
    assert amount("stage3", "sa-v", "mevis") == pytest.approx(116.5, rel=0.02)


@pytest.mark.slow
def test_the_stages_are_stepped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onevision.make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = TrainConfig.from_yaml(CONFIG)
    config.model, config.dtype, config.data.num_workers = "host", "float32", 0
    config.data.video = VideoOptions(num_frames=2)
    config.tpo.heads = {"mask": {"size": "micro", "image_size": 32, "train": "all"}}
    heads = {"refcoco": "region", "refcoco+": "region", "refcocog": "region", "as-v2": "region", "sa-v": "mask"}
    heads |= {"visual-genome": "region", "mevis": "mask"}
    chats = {"videochat2-it", "llava-hound-dpo", "sharegpt4v", "gpt-4o"}
    for file in files():
        name = Path(file).stem
        head = None if name in chats else heads.get(name, "temporal")
        kind = "image" if head == "region" else "video"
        turns = [
            {"from": "human", "value": f"<{kind}>\nwhere?"},
            {"from": "gpt", "value": f"<{head}>" if head else "red"},
        ]
        media = str(tmp_path / "data" / ("picture.png" if kind == "image" else "clip.mp4"))
        task = dict(TASKS[head]) if head else {}
        if head == "mask":
            task["masks"] = [{"size": [48, 64], "counts": [100, 500, 48 * 64 - 600]}]
        record = {kind: media, "conversations": turns} | ({"tasks": [task]} if head else {})
        text = json.dumps(record)
        Path(file).write_text(f"[{text}]" if file.endswith(".json") else f"{text}\n" * 4)
    for stage in config.stages.values():
        stage.steps, stage.batch_size, stage.warmup, stage.logging_steps = 1, 8, 0.0, 1
        stage.trainer |= {"report_to": [], "disable_tqdm": True, "use_cpu": True}
    torch.set_num_threads(1)
    stages = read_run(train(config))["stages"]
    assert list(stages) == ["stage1", "stage2", "stage3-tasks", "stage3"]
    for name, stage in stages.items():
        log = stage["log"][0]
        heads = set() if name == "stage1" else {"loss_region", "loss_temporal", "loss_mask"}
        assert {key for key in log if key.startswith("loss_")} == heads | {"loss_mllm", "loss_assign"}
        assert ", 0 skipped" in stage["media"]
