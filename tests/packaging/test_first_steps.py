"""docs/start.md: from 50 pictures in COCO's form to a trained run that is asked, by the page's five commands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tpo_shapes.host import build_model, build_processor
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin.training.run import read_run

pytestmark = [pytest.mark.packaging, pytest.mark.filterwarnings("default")]

ROOT = Path(__file__).parents[2]
HUB_NAME = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
NUM_PICTURES = 50


def coco(folder: Path) -> None:
    """Pictures of 64 x 48 pixels with a red or a blue thing each, and their boxes."""
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    images, annotations = [], []
    for number in range(1, NUM_PICTURES + 1):
        name, category = f"{number:06d}.jpg", 1 + number % 2
        x, y = (int(v) for v in rng.integers(0, 24, 2))
        picture = Image.fromarray(rng.integers(0, 90, (48, 64, 3), dtype=np.uint8))
        picture.paste((255, 0, 0) if category == 1 else (0, 0, 255), (x, y, x + 20, y + 16))
        picture.save(folder / "pictures" / name)
        images.append({"id": number, "file_name": name, "width": 64, "height": 48})
        box = {"bbox": [x, y, 20, 16], "area": 320, "iscrowd": 0}
        annotations.append({"id": number, "image_id": number, "category_id": category, **box})
    categories = [{"id": 1, "name": "red circle"}, {"id": 2, "name": "blue square"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the data, and a host that takes the place of the hub's."""
    processor = build_processor()
    build_model(processor.tokenizer, width=32, num_layers=2).save_pretrained(tmp_path / "host")
    processor.save_pretrained(tmp_path / "host")
    coco(tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path


def tpo(line: str) -> str:
    """What a line of a page prints."""
    program, *arguments = shlex.split(line.replace(HUB_NAME, "host"))
    assert program == "tpo"
    result = CliRunner().invoke(tpo_plugin.cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_five_commands_from_pictures_to_an_answer(folder: Path) -> None:
    page = (ROOT / "docs/start.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"<!-- commands: start -->\n((?:    .+\n)+)", page)
    lines = commands.strip().splitlines()
    assert [line.split()[1] for line in lines] == ["convert", "check", "init", "train", "predict"]
    printed = [tpo(line) for line in lines]
    assert "50 records written, 0 left out" in printed[0]
    assert "50 records: none wrong" in printed[1]
    assert printed[2] == "train.yaml: 50 records, tasks: 50 of region\nnext: tpo train train.yaml\n"
    stages = read_run("run")["stages"]
    assert list(stages) == ["stage1", "stage2", "stage3"]
    values = yaml.safe_load(Path("train.yaml").read_text())["stages"]
    assert [stage["batch_size"] for stage in values.values()] == [4, 4, 4]  # an epoch has ten steps at least
    assert stages["stage2"]["log"][-1]["step"] == 13
    assert Path("answer.png").is_file()


@pytest.mark.slow
def test_the_short_file_of_the_page_trains(folder: Path) -> None:
    page = (ROOT / "docs/train.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"<!-- file: train.yaml -->\n```yaml\n(.*?)```", page, re.DOTALL)
    tpo("tpo convert coco boxes.json --pictures pictures -o records.jsonl")
    chat = {"conversations": [{"from": "human", "value": "how many?"}, {"from": "gpt", "value": "two"}]}
    Path("chat.jsonl").write_text(json.dumps(chat) + "\n")
    values = yaml.safe_load(text) | {"model": "host"}
    for stage in values["stages"].values():
        stage |= {"batch_size": 8, "micro_batch_size": 8, "steps": 1}
    Path("train.yaml").write_text(yaml.safe_dump(values))
    tpo("tpo check --config train.yaml")
    tpo("tpo train train.yaml")
    assert list(read_run("run")["stages"]) == ["stage1", "stage2", "stage3"]
