"""README.md and docs/train.md: their code runs, and the README's commands and output are those of the repository."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tpo_shapes.host import build_model, build_processor

from tpo_plugin.data import RecordDataset, Records, TPOCollator

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAIN = (ROOT / "docs/train.md").read_text(encoding="utf-8")
HUB_NAME = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"


def block(mark: str, page: str = README) -> str:
    """The fenced block behind `<!-- mark -->`."""
    match = re.search(rf"<!-- {re.escape(mark)} -->\n```\w+\n(.*?)```", page, re.DOTALL)
    assert match, mark
    return match[1]


def command(name: str) -> str:
    match = re.search(rf"<!-- command: {name} -->\n    (.+)\n\n", README)
    assert match, f"{name}: not one indented line"
    return match[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host that takes the place of the hub's, and the page's own record with its picture."""
    processor = build_processor()
    build_model(processor.tokenizer, width=32, num_layers=2).save_pretrained(tmp_path / "host")
    processor.save_pretrained(tmp_path / "host")
    record = json.loads(block("code: record", TRAIN))
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n")
    Image.new("RGB", (640, 480), "red").save(tmp_path / record["image"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str, folder: Path, **names: Any) -> dict[str, Any]:
    assert HUB_NAME in code
    exec(compile(code.replace(HUB_NAME, str(folder / "host")), "README.md", "exec"), names)
    return names


@pytest.mark.filterwarnings("default")
def test_the_diff_adds_three_lines_and_trains(folder: Path) -> None:
    lines = block("code: diff").splitlines()
    assert [line[:1] for line in lines].count("+") == 3
    assert not any(line.startswith("-") for line in lines)
    made: dict[str, Any] = {}

    def collate(samples: Any) -> Any:
        return TPOCollator(made["model"].tpo)(samples)

    class Dataset(torch.utils.data.Dataset):
        """The reader's own: it reads its samples when they are asked for."""

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            return RecordDataset([Records("records.jsonl", made["model"].tpo)])[index]

    args = transformers.TrainingArguments("out", max_steps=1, use_cpu=True, report_to=[], remove_unused_columns=False)
    before = "\n".join(line[1:] for line in lines[:-2])
    made |= run(before, folder, arguments=args, dataset=Dataset(), collate=collate)
    exec("\n".join(line[1:] for line in lines[-2:]), made)
    (first, *_) = made["trainer"].state.log_history
    assert {"loss"} <= set(first) or "train_loss" in first
    assert made["model"].tpo.last_output.losses.keys() == {"mllm", "assign", "region"}


@pytest.mark.filterwarnings("default")
def test_training_on_records_and_asking(folder: Path, capsys: pytest.CaptureFixture) -> None:
    made = run(block("code: records", TRAIN), folder)
    assert made["trainer"].state.global_step == 3
    assert (folder / "out" / "tpo_model.safetensors").is_file()
    assert "where is the red circle" in capsys.readouterr().out
    assert len(made["answer"].predictions) == 1


def test_the_listing_is_true() -> None:
    done = subprocess.run([sys.executable, "-m", "tpo_plugin"], capture_output=True, text=True, check=True)
    printed = [line.split() for line in done.stdout.splitlines()]
    shown = [line.split() for line in block("output: heads").splitlines()]
    assert len(shown) >= 2
    assert all(line in printed for line in shown), done.stdout


def test_commands_name_what_is_there() -> None:
    for name, entry in (("demo", "tpo demo"), ("tests", "pytest")):
        line = command(name)
        assert f".venv/bin/{entry}" in line
        assert "-r requirements.txt" in line
    members = [path.parent for folder in ("heads", "patches") for path in ROOT.glob(f"{folder}/*/pyproject.toml")]
    installed = re.findall(r"^-e ([\w./]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert sorted(installed) == sorted([".", "examples/shapes", *(str(path.relative_to(ROOT)) for path in members)])
