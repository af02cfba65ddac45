"""`tpo init`: a training file that `tpo check` and `tpo train` take as it is."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin.cli import init
from tpo_plugin.errors import TPOError
from tpo_plugin.keys import keys_of
from tpo_plugin.training.config import StageConfig, TrainConfig, paper_stages


@pytest.fixture
def folder(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host and the records of `world`, in the working directory."""
    (tmp_path / "host").symlink_to(world / "host")
    for name in ("records.jsonl", "picture.png"):
        shutil.copy(world / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tpo(*arguments: str, given: str | None = None) -> Any:
    return CliRunner().invoke(tpo_plugin.cli.app, arguments, input=given, catch_exceptions=False)


def test_every_key_stands_there_with_its_meaning(folder: Path) -> None:
    result = tpo("init", "--host", "host", "--data", "records.jsonl", "--output-dir", "out")
    assert (result.exit_code, result.output) == (
        0,
        "train.yaml: 4 records, tasks: 2 of region\nnext: tpo train train.yaml\n",
    )
    text = Path("train.yaml").read_text()
    plain = re.sub(r"\n *# ", " ", text)
    for config in (TrainConfig, StageConfig):
        for key in keys_of(config):
            assert re.search(rf"^ *(# )?{key.name}:", text, re.MULTILINE), key.name
            assert key.about in plain, key.name
    config = TrainConfig.from_yaml("train.yaml")
    assert (config.model, config.output_dir, config.heads) == ("host", "out", ["region"])
    assert list(config.stages) == list(paper_stages())
    for name, paper in paper_stages().items():
        stage = config.stages[name]
        assert (stage.learning_rates, stage.losses) == (paper.learning_rates, paper.losses)
        assert (stage.epochs, stage.batch_size, stage.micro_batch_size) == (paper.epochs, 1, 1)
        assert [source.file for source in stage.data] == ["records.jsonl"]


def test_what_is_behind_a_hash_is_the_default(folder: Path) -> None:
    tpo("init", "--host", "host", "--data", "records.jsonl")
    text = Path("train.yaml").read_text()
    names = "|".join(key.name for config in (TrainConfig, StageConfig) for key in keys_of(config))
    every = re.sub(rf"^( *)# ((?:{names}): )", r"\1\2", text, flags=re.MULTILINE)
    assert every.count("\n# ") < text.count("\n# ")
    Path("all.yaml").write_text(every)
    assert TrainConfig.from_yaml("all.yaml") == TrainConfig.from_yaml("train.yaml")


def test_it_is_checked_and_trained_as_it_is(folder: Path) -> None:
    tpo("init", "-o", "small.yaml", "--host", "host", "--data", "records.jsonl", "--eval-data", "records.jsonl")
    assert tpo("check", "--config", "small.yaml", "--workers", "1").exit_code == 0
    values = yaml.safe_load(Path("small.yaml").read_text())
    assert values["stages"]["stage2"]["eval_data"] == [{"file": "records.jsonl"}]


def test_it_asks_at_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TPOError, match="--host is missing"):
        tpo("init")
    monkeypatch.setattr(init, "_at_terminal", lambda: True)
    assert tpo("init", given="host\nrecords.jsonl\n").exit_code == 0
    assert yaml.safe_load(Path("train.yaml").read_text())["model"] == "host"


def write_boxes(path: str, category: str = "cup") -> None:
    """One box in COCO's layout."""
    boxes = {
        "images": [{"id": 1, "file_name": "picture.png", "width": 64, "height": 48}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20], "iscrowd": 0}],
        "categories": [{"id": 1, "name": category}],
    }
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(json.dumps(boxes))


COCO = ["--format", "coco", "--pictures", "."]


def test_a_format_is_converted_first(folder: Path) -> None:
    write_boxes("boxes.json")
    arguments = ["init", "--host", "host", "--data", "boxes.json", *COCO]
    result = tpo(*arguments)
    assert "train.yaml: 1 records, tasks: 1 of region" in result.output
    stage = yaml.safe_load(Path("train.yaml").read_text())["stages"]["stage1"]
    assert stage["data"] == [{"file": "boxes.records.jsonl"}]


def test_converted_files_of_one_name_stand_side_by_side_at_the_training_file(folder: Path) -> None:
    names = ["cup", "dog", "hat"]
    for name in names:
        write_boxes(f"{name}/boxes.json", name)
    sources = [word for name in names for word in ("--data", f"{name}/boxes.json")]
    result = tpo("init", "-o", "new/boxes-2.records.jsonl", "--host", "host", *sources, *COCO)
    assert "3 records, tasks: 3 of region" in result.output
    files = [f"new/boxes{number}.records.jsonl" for number in ("", "-3", "-4")]
    config = TrainConfig.from_yaml("new/boxes-2.records.jsonl")  # the training file, under a name that one would get
    for stage in config.stages.values():
        assert [source.file for source in stage.data] == files
    assert [name in Path(file).read_text() for file, name in zip(files, names, strict=True)] == [True] * 3
    assert not list(folder.glob("boxes*"))


def test_a_converted_file_overwrites_none(folder: Path) -> None:
    for name in ("box", "boxes"):
        write_boxes(f"{name}.json")
    Path("boxes.records.jsonl").write_text("mine")
    with pytest.raises(TPOError, match=r"boxes.records.jsonl is there already, where the records of boxes.json were"):
        tpo("init", "--host", "host", "--data", "box.json", "--data", "boxes.json", *COCO)
    assert Path("boxes.records.jsonl").read_text() == "mine"
    assert not Path("box.records.jsonl").exists(), "found before anything is converted"


def test_converted_records_name_their_media_from_where_they_lie(folder: Path) -> None:
    write_boxes("boxes.json")
    arguments = ["init", "--host", "host", "--data", "boxes.json", "--media-root", str(folder), *COCO]
    with pytest.raises(TPOError, match="--media-root was given with --format; converted records name their media"):
        tpo(*arguments)
    assert tpo(*arguments, "--eval-data", "records.jsonl").exit_code == 0
    stage = yaml.safe_load(Path("train.yaml").read_text())["stages"]["stage1"]
    assert stage["data"] == [{"file": "boxes.records.jsonl"}]
    assert stage["eval_data"] == [{"file": "records.jsonl", "media": str(folder)}]


def test_heads_may_stand_with_blanks(folder: Path) -> None:
    assert tpo("init", "--host", "host", "--data", "records.jsonl", "--heads", " region, ").exit_code == 0
    assert TrainConfig.from_yaml("train.yaml").heads == ["region"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "nowhere"], "--host is nowhere; expected a folder that is there, or a name on the hub"),
        (["--host", "."], "has no config.json"),
        (["--heads", "temporal"], "region"),
        (["--heads", " ,"], "--heads ' ,' names no head; expected for example --heads region,temporal"),
        (["--picturs", "x"], "--picturs x: is no option of `tpo init`"),
        (["--data", "chat.jsonl"], ""),
        (["-o", "taken.yaml"], "taken.yaml is there already"),
    ],
)
def test_what_cannot_be_is_said(folder: Path, arguments: list[str], message: str) -> None:
    Path("taken.yaml").touch()
    chat = {"conversations": [{"from": "human", "value": "how many?"}, {"from": "gpt", "value": "two"}]}
    Path("chat.jsonl").write_text(json.dumps(chat) + "\n")
    given = ["--host", "host"] * ("--host" not in arguments) + ["--data", "records.jsonl"] * ("--data" not in arguments)
    message = message or "chat.jsonl: no record has a task"
    with pytest.raises(TPOError, match=re.escape(message)):
        tpo("init", *arguments, *given)
    assert not Path("train.yaml").exists()
