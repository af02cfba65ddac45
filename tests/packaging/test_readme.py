"""README.md: its code runs, and its commands, output and table are those of the repository."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tpo_shapes.host import build_model, build_processor

import tpo_plugin
from tpo_plugin.data import RecordDataset, Records, TPOCollator
from tpo_plugin.tiny import tiny_host

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HUB_NAME = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
RECORD = re.search(r'^    (\{"image".*?\}\]\})\n', README, re.DOTALL | re.MULTILINE)


def block(mark: str) -> str:
    """The fenced block behind `<!-- mark -->`."""
    match = re.search(rf"<!-- {re.escape(mark)} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert match, mark
    return match[1]


def command(name: str) -> str:
    match = re.search(rf"<!-- command: {name} -->\n    (.+)\n\n", README)
    assert match, f"{name}: not one indented line"
    return match[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host that takes the place of the hub's, and the README's own record with its picture."""
    processor = build_processor()
    build_model(processor.tokenizer, width=32, num_layers=2).save_pretrained(tmp_path / "host")
    processor.save_pretrained(tmp_path / "host")
    assert RECORD
    record = json.loads(RECORD[1])
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
    made = run(block("code: records"), folder)
    assert made["trainer"].state.global_step == 3
    assert (folder / "out" / "tpo_model.safetensors").is_file()
    assert "where is the red circle" in capsys.readouterr().out
    assert len(made["answer"].predictions) == 1


def test_the_head_of_one_s_own_runs() -> None:
    module = ModuleType("readme_point")
    sys.modules["readme_point"] = module
    try:
        exec(compile(block("code: point"), "README.md", "exec"), vars(module))
        tpo_plugin.register_plugin(module, "point")
        model, tokenizer = tiny_host()
        tpo_plugin.apply_tpo(model, tokenizer, heads=["point"])
        trigger, task = model.tpo.token_ids["point"]
        ids = torch.tensor([[1, 5, trigger, task, 2]])
        labels = torch.tensor([[-100, -100, trigger, -100, 2]])
        targets = {"point": {"points_xy": torch.tensor([[0.2, 0.3]])}}
        out = model(input_ids=ids, labels=labels, task_targets=targets)
        assert out.tpo.losses["point"] > 0
        assert out.tpo.predictions["point"].shape == (1, 2)
    finally:
        tpo_plugin.unregister_plugin("point")
        del sys.modules["readme_point"]


def test_the_listing_is_true() -> None:
    done = subprocess.run([sys.executable, "-m", "tpo_plugin"], capture_output=True, text=True, check=True)
    printed = [line.split() for line in done.stdout.splitlines()]
    shown = [line.split() for line in block("output: heads").splitlines()]
    assert len(shown) >= 2
    assert all(line in printed for line in shown), done.stdout


def heads_table() -> str:
    """The table of the heads in tree, from their metadata and what they register."""
    rows = ["| head | trigger, task token | given in the prompt | what it is | licence |", "|---|---|---|---|---|"]
    for file in sorted(ROOT.glob("heads/*/pyproject.toml")):
        project = tomllib.loads(file.read_text())["project"]
        (name,) = project["entry-points"]["tpo_plugin"]
        spec = tpo_plugin.registry().head(name)
        given = f"`{spec.input_token}`" if spec.input_token else "nothing"
        about = project["description"].partition(": ")[2]
        link = f"[{project['name']}](heads/{file.parent.name}/README.md)"
        tokens = f"`{spec.trigger}` `{spec.task_token}`"
        rows.append(f"| {link} | {tokens} | {given} | {about} | {project['license']} |")
    return "\n".join(rows)


def test_the_table_of_heads_is_generated() -> None:
    assert f"<!-- table: heads -->\n{heads_table()}\n\n" in README, f"paste this:\n{heads_table()}"


def test_commands_name_what_is_there() -> None:
    for name, entry in (("demo", "tpo demo"), ("tests", "pytest")):
        line = command(name)
        assert f".venv/bin/{entry}" in line
        assert "-r requirements.txt" in line
    members = [path.parent for folder in ("heads", "patches") for path in ROOT.glob(f"{folder}/*/pyproject.toml")]
    installed = re.findall(r"^-e ([\w./]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert sorted(installed) == sorted([".", "examples/shapes", *(str(path.relative_to(ROOT)) for path in members)])


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing
