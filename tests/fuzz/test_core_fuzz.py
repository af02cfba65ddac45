"""Files that the core reads: records, YAML, tpo_config.json with its weights, run.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
import zoo
from fuzzing import files, fuzz, texts

from tpo_plugin import apply_tpo, load_tpo, remove_tpo
from tpo_plugin.data import RecordFormat, Records
from tpo_plugin.files import CONFIG_FILE, WEIGHTS_FILE
from tpo_plugin.script.settings import read_config
from tpo_plugin.training.config import TrainConfig
from tpo_plugin.training.run import RUN_FILE, read_run
from tpo_plugin.yaml_file import read_yaml

RECORD = {
    "id": "42",
    "image": ["a.png", "b.png"],
    "video": [],
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image> <image>\nWhat is at <region>, and where are the dogs?"},
        {"from": "gpt", "value": "A cat. Dogs: <region>."},
    ],
    "tasks": [
        {"head": "region", "boxes": [[0.1, 0.2, 0.3, 0.4]]},
        {"head": "region", "boxes": [[0, 0, 1, 1], [0.5, 0.5, 0.6, 0.6]], "time": 9.8},
    ],
}
CHAT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
CONFIG = {
    "model": "host",
    "output_dir": "run",
    "heads": ["region"],
    "tpo": {"loss_weights": {"assign": 1.0, "region": 0.5}, "heads": {"region": {"loss": "mse", "trigger": "<b>"}}},
    "lora": {"r": 8, "alpha": 16, "dropout": 0.1, "targets": ["q_proj"]},
    "modules": {"connector": r"(^|\.)projector\."},
    "data": {"video": {"num_frames": 4, "sampling": "fps", "fps": 2.0}, "max_length": 512, "max_bad_share": 0.02},
    "stages": {
        "stage1": {"learning_rates": {"lora": 1e-4}, "steps": 3, "data": [{"file": "a.jsonl", "weight": 2.0}]},
        "own": {"learning_rates": {"heads.region": 1e-4}, "trainer": {"gradient_checkpointing": True}, "epochs": 0.5},
    },
}


@pytest.fixture(scope="module")
def format() -> RecordFormat:
    return RecordFormat.of_heads(["region"])


@pytest.mark.parametrize("confine", [False, True])
def test_records(tmp_path: Path, format: RecordFormat, confine: bool) -> None:
    lines = files([RECORD, CHAT], lambda values: "\n".join(json.dumps(value) for value in values or [1]))
    fuzz(lines, tmp_path / "a.jsonl", lambda path: list(Records(path, format, confine=confine)), tries=130)


def test_lists_of_records(tmp_path: Path, format: RecordFormat) -> None:
    fuzz(files([RECORD, CHAT]), tmp_path / "a.json", lambda path: list(Records(path, format)), tries=100)


def test_training_configurations(tmp_path: Path) -> None:
    fuzz(files(CONFIG, _as_yaml), tmp_path / "train.yaml", TrainConfig.from_yaml, tries=150)


def test_yaml(tmp_path: Path) -> None:
    good = (b"a: &a [1]\nb: *a\nseed: !!float '2.5'\n", b"x: &x {k: 1}\ny: {<<: *x, z: 0x1f}\nt: 1:20\n")
    fuzz(texts(*good), tmp_path / "a.yaml", read_yaml, tries=200)


def test_configurations_of_a_script(tmp_path: Path) -> None:
    fuzz(files(CONFIG["tpo"], _as_yaml), tmp_path / "tpo.yaml", read_config, tries=70)


def _as_yaml(value: Any) -> str:
    try:
        return yaml.safe_dump(value, sort_keys=False)
    except (yaml.YAMLError, ValueError):  # a number or text that YAML cannot write
        return json.dumps(value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `save_pretrained` writes, and a run.json."""
    folder = tmp_path_factory.mktemp("saved")
    apply_tpo(zoo.host("llama").build(), zoo.tokenizer(), ["region"]).tpo.save_pretrained(folder)
    run = {"format_version": 1, "tpo_plugin": "0", "host": "host", "config": CONFIG, "stages": {"stage1": {"log": []}}}
    (folder / RUN_FILE).write_text(json.dumps(run))
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "saved"))


@pytest.fixture(scope="module")
def load() -> Callable[[Path], None]:
    """Loads the folder of a file onto one host, which it leaves as it was, whatever is wrong with the file."""
    host, tokenizer = zoo.host("llama").build(), zoo.tokenizer()
    before = zoo.snapshot(host, tokenizer)

    def load(path: Path) -> None:
        try:
            remove_tpo(load_tpo(host, path.parent, tokenizer))
        finally:
            assert zoo.snapshot(host, tokenizer) == before

    return load


def test_saved_configurations(copied: Path, load: Callable[[Path], None]) -> None:
    fuzz(files(json.loads((copied / CONFIG_FILE).read_text())), copied / CONFIG_FILE, load, tries=120)


def test_saved_weights(copied: Path, load: Callable[[Path], None]) -> None:
    fuzz(texts((copied / WEIGHTS_FILE).read_bytes()), copied / WEIGHTS_FILE, load, tries=60)


def test_runs(copied: Path) -> None:
    def read(path: Path) -> Any:
        return TrainConfig.from_dict(read_run(path.parent)["config"], where=f"{path}: config")

    fuzz(files(json.loads((copied / RUN_FILE).read_text())), copied / RUN_FILE, read, tries=120)
