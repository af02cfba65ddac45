"""`tpo check`: every record, without a host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin.data import check as check_module

pytestmark = pytest.mark.skipif("region" not in tpo_plugin.registry().heads, reason="needs the region head")


def record(*boxes: list[float], image: str | None = None, **task: Any) -> str:
    turns = [{"from": "human", "value": "<image>where" if image else "where"}, {"from": "gpt", "value": "<region>"}]
    media = {"image": image} if image else {}
    tasks = [{"head": "region", "boxes": list(boxes), **task}]
    return json.dumps({"conversations": turns, "tasks": tasks} | media)


CHAT = json.dumps({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]})
GOOD, BAD = record([0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1]), record([0.5, 0.5, 0.2, 0.6])


def write(folder: Path, *lines: str, name: str = "a.jsonl") -> str:
    path = folder / name
    path.write_text("[" + ",\n".join(lines) + "]" if name.endswith(".json") else "\n".join(lines), encoding="utf-8")
    return str(path)


def run(*arguments: str) -> tuple[int, Any]:
    result = CliRunner().invoke(tpo_plugin.cli.app, ["check", *arguments, "--heads", "region", "--json"])
    assert result.exit_code in (0, 1), result.output
    return result.exit_code, json.loads(result.stdout)


def test_good_files_are_counted(tmp_path: Path) -> None:
    code, report = run(write(tmp_path, GOOD, CHAT, GOOD), write(tmp_path, GOOD, name="b.json"))
    assert code == 0
    assert report == {
        "records": 4,
        "without_tasks": 1,
        "files": {
            str(tmp_path / name): {"records": num, "wrong": 0, "without_media": 0, "missing": None}
            for name, num in (("a.jsonl", 3), ("b.json", 1))
        },
        "heads": {"region": {"records": 3, "tasks": 3, "tokens": 6}},
        "errors": [],
    }


def test_errors_by_kind_with_their_first_places(tmp_path: Path) -> None:
    lines = [*[BAD] * 3, "{", GOOD, record([0.1, 0.1, 0.5, 0.5], bbox_type="xywh")]
    file, missing = write(tmp_path, *lines), str(tmp_path / "none.jsonl")
    code, report = run(file, missing, "--limit-errors", "2")
    assert code == 1
    assert report["records"] == 6
    assert report["heads"]["region"]["records"] == 1
    box, unknown = report["errors"][1], report["errors"][3]
    assert [error["count"] for error in report["errors"]] == [1, 3, 1, 1]
    assert box["kind"].startswith("tasks[].boxes[]: x1 is … and x2 is …; expected x1 < x2")
    assert [place.split(": ")[0] for place in box["first"]] == [f"{file}:1", f"{file}:2"]
    assert unknown["first"] == [
        f"{file}:6: tasks[0].bbox_type: is no field of head 'region'; did you mean 'boxes'? "
        "(valid: 'boxes', 'head', 'time')"
    ]
    assert "none.jsonl: cannot be read" in report["errors"][0]["first"][0]
    text = CliRunner().invoke(tpo_plugin.cli.app, ["check", file, "--limit-errors", "2"]).stdout
    assert text.startswith("6 records: 5 wrong, 0 without tasks\n  region: 1 tasks in 1 records, 2 tokens\n3 x ")
    assert "and 1 more" in text


def test_every_missing_file_is_named_and_how_much_of_each_is_there(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    images = [record([0, 0, 1, 1], image=name) for name in ("a.png", "b.png", "c.png")]
    file, other = write(tmp_path, *images, BAD), write(tmp_path, GOOD, name="b.jsonl")
    missing = [str(tmp_path / f"none{i}.jsonl") for i in range(7)]
    result = CliRunner().invoke(tpo_plugin.cli.app, ["check", file, other, *missing, "--heads", "region"])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[2:4] == [
        f"  {file}: 4 records, 1 wrong, media of 2 missing; first {tmp_path / 'b.png'}",
        f"  {other}: 1 records, none wrong",
    ]
    assert lines[4:12] == ["7 x file", *(f"  {path}: cannot be read: No such file or directory" for path in missing)]


def test_a_late_record_in_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "_BLOCK", 40)
    code, report = run(write(tmp_path, *[GOOD] * 100, BAD, name="a.json"), "--workers", "2")
    assert code == 1
    assert report["records"] == 101
    (error,) = report["errors"]
    assert "a.json: [100].tasks[0].boxes[0]: x1 is 0.5" in error["first"][0]


def test_media_are_opened_when_asked(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    file = write(tmp_path, record([0, 0, 1, 1], image="a.png"), record([0, 0, 1, 1], image="b.png"))
    assert run(file)[0] == 0
    code, report = run(file, "--media", "--workers", "1")
    assert code == 1
    (error,) = report["errors"]
    assert error["kind"].startswith("media: ")
    assert error["first"][0].startswith(f"{file}:2: {tmp_path / 'b.png'}: ")


def test_heads_and_data_of_a_training_configuration(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    config = tmp_path / "train.yaml"
    config.write_text(
        f"model: m\noutput_dir: o\nheads: [region]\nstage1: {{data: [{{file: {file}}}]}}\nstage2: null\nstage3: null\n"
    )
    result = CliRunner().invoke(tpo_plugin.cli.app, ["check", "--config", str(config), "--json"])
    assert json.loads(result.stdout)["records"] == 1
    assert json.loads(result.stdout)["stages"] == {"stage1": {file: 1}}


def test_what_an_epoch_of_each_stage_draws(tmp_path: Path) -> None:
    file, other = write(tmp_path, *[GOOD] * 6, BAD), write(tmp_path, GOOD, GOOD, name="b.jsonl")
    config = tmp_path / "train.yaml"
    sources = [{"file": file, "weight": 0.5}, {"file": other}, {"file": str(tmp_path / "none.jsonl"), "weight": 3}]
    stages = {"stage1": {"data": sources}, "stage3": {"data": sources[1:2]}}
    config.write_text(json.dumps({"model": "m", "output_dir": "o", "heads": ["region"], "stages": stages}))
    result = CliRunner().invoke(tpo_plugin.cli.app, ["check", "--config", str(config)])
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-6:] == [
        "stage1: 5 samples an epoch",
        f"  {file}: 3 (60.0%)",
        f"  {other}: 2 (40.0%)",
        f"  {tmp_path / 'none.jsonl'}: 0 (0.0%)",
        "stage3: 2 samples an epoch",
        f"  {other}: 2 (100.0%)",
    ]


def test_no_torch_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys; from tpo_plugin.data import RecordFormat, Records; "
        f"print(len(Records({write(tmp_path, GOOD)!r}, RecordFormat.of_heads(['region']))), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["1", "False"], done.stderr
