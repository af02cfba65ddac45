"""`tpo check`: every record, without a host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shards import picture, write_shards
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
        "warnings": [],
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
    assert text.count("tasks[0].bbox_type") == 1, "where there is one of a kind, its message says all"


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


def test_many_boxes_that_few_pictures_have_get_a_line(tmp_path: Path) -> None:
    good, whole, tiny = ([0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.505, 0.505])
    file = write(tmp_path, *[record(good)] * 27, record(whole, whole), record(tiny))
    code, report = run(file)
    assert code == 0
    assert report["warnings"] == [
        "region: 2 of 30 boxes (7%) cover the whole picture; is that meant? look at them with --pictures"
    ]
    code, report = run(write(tmp_path, *[record([0.1, 0.2, 0.1001, 0.9], good)] * 10), "--workers", "2")
    assert report["warnings"][0].startswith("region: 10 of 20 boxes (50%) are nearly without width or height")
    assert run(write(tmp_path, record(whole)))[1]["warnings"] == []


@pytest.mark.parametrize(
    ("box", "cure"),
    [
        ([10, 20, 300, 400], "these look like pixels: divide x by the width of the image, y by its height; or like 0"),
        ([10, 20, 300, 4000], "these look like pixels: divide x by the width of the image, y by its height)"),
        ([10.5, 20, 30, 40], "or percent: divide all by 100"),
        ([-0.01, 0.2, 0.3, 0.4], "cut it off at the edge of the image"),
        (
            [0.5, 0.5, 0.2, 0.3],
            "if they are x, y, width and height, write [0.5, 0.5, 0.7, 0.8]",
        ),
    ],
)
def test_boxes_of_another_kind_are_told_the_cure(tmp_path: Path, box: list[float], cure: str) -> None:
    code, report = run(write(tmp_path, record(box)))
    assert code == 1
    assert cure in report["errors"][0]["first"][0]


def test_a_contact_sheet_shows_boxes_where_they_are(tmp_path: Path) -> None:
    Image.new("RGB", (400, 300), "white").save(tmp_path / "a.png")
    lines = [record([0.25, 0.25, 0.75, 0.75], image="a.png"), CHAT, BAD, record([0.1, 0.1, 0.2, 0.2], image="gone.png")]
    sheet = tmp_path / "sheet.png"
    code, report = run(write(tmp_path, *lines), "--pictures", str(sheet))
    assert code == 1  # of the bad one
    assert report["pictures"]["drawn"] == 2
    (failed,) = report["pictures"]["failed"]
    assert "a.jsonl:4: " in failed
    assert "gone.png: no such file" in failed
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    orange = np.argwhere(np.abs(pixels - (255, 140, 0)).max(-1) < 40)
    (top, left), (bottom, right) = orange.min(0), orange.max(0)
    assert (right - left) / (bottom - top) == pytest.approx(4 / 3, abs=0.05)  # half of the picture's width and height


def test_a_contact_sheet_opens_nothing_outside_of_the_folder(tmp_path: Path) -> None:
    Image.new("RGB", (400, 300), "white").save(tmp_path / "a.png")
    inside = tmp_path / "inside"
    inside.mkdir()
    Image.new("RGB", (40, 30), "white").save(inside / "b.png")
    out, good = (record([0.25, 0.25, 0.75, 0.75], image=name) for name in ("../a.png", "b.png"))
    sheet = tmp_path / "sheet.png"
    code, report = run(write(inside, out, good), "--confine", "--pictures", str(sheet))
    assert code == 1
    assert (report["pictures"]["drawn"], report["pictures"]["failed"]) == (1, [])
    sheet.unlink()
    arguments = ["check", write(inside, out), "--confine", "--pictures", str(sheet), "--heads", "region"]
    result = CliRunner().invoke(tpo_plugin.cli.app, arguments)
    assert "lies outside of" in result.stdout, "the report stands there, whatever becomes of the sheet"
    assert "no record with a task was found to draw" in str(result.exception)
    assert not sheet.exists()


def test_the_configuration_confines_too(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    file, config = write(tmp_path / "inside", record([0, 0, 1, 1], image="../a.png")), tmp_path / "train.yaml"
    values = {"model": "m", "output_dir": "o", "heads": ["region"], "stages": {"stage1": {"data": [{"file": file}]}}}
    for confine in (False, True):
        config.write_text(json.dumps(values | {"data": {"confine": confine}}))
        result = CliRunner().invoke(tpo_plugin.cli.app, ["check", "--config", str(config)])
        assert (result.exit_code, "lies outside of" in result.stdout) == (int(confine), confine)


def test_prompts_are_drawn(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "white").save(tmp_path / "a.png")
    prompt = json.loads(record([0.1, 0.1, 0.5, 0.5], image="a.png"))
    prompt["conversations"] = [{"from": "human", "value": "<image>what is <region>?"}]
    code, report = run(write(tmp_path, json.dumps(prompt)), "--prompts", "--pictures", str(tmp_path / "sheet.png"))
    assert (code, report["pictures"]["drawn"]) == (0, 1)


def test_heads_may_stand_with_blanks(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    assert CliRunner().invoke(tpo_plugin.cli.app, ["check", file, "--heads", " region, "]).exit_code == 0
    result = CliRunner().invoke(tpo_plugin.cli.app, ["check", file, "--heads", ""])
    assert "--heads '' names no head; expected for example --heads region,temporal" in str(result.exception)


def test_a_head_that_does_not_draw_says_so(tmp_path: Path) -> None:
    from tpo_plugin.data.format import RecordFormat
    from tpo_plugin.data.sheet import write_sheet
    from tpo_plugin.data.sources import RecordFile
    from tpo_plugin.errors import TPOError

    class Silent(tpo_plugin.TaskCodec):
        def num_tokens(self, task: dict[str, Any]) -> int:
            return len(task["boxes"])

    known = RecordFormat.of_heads(["region"])
    format = RecordFormat({"region": Silent(None)}, known.tokens)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    files = [("a", RecordFile(write(tmp_path, record([0.1, 0.1, 0.5, 0.5], image="a.png"))), tmp_path)]
    assert write_sheet(tmp_path / "s.jpg", files, format).silent == ["region"]
    with pytest.raises(TPOError, match="no record with a task was found to draw"):
        write_sheet(tmp_path / "s.jpg", [("c", RecordFile(write(tmp_path, CHAT)), tmp_path)], format)


def test_a_contact_sheet_is_a_png_or_jpg(tmp_path: Path) -> None:
    result = CliRunner().invoke(tpo_plugin.cli.app, ["check", write(tmp_path, GOOD), "--pictures", "a.pdf"])
    assert "--pictures is a.pdf; expected a .png or .jpg" in str(result.exception)


def test_shards_are_checked_and_drawn(tmp_path: Path) -> None:
    """By the pattern that names them, with the pictures inside, and what is wrong by shard and sample."""
    boxes = [[0.1, 0.1, 0.5, 0.5]] * 3 + [[0.5, 0.1, 0.1, 0.5]]
    records = [json.loads(record(box, image="png")) for box in boxes]
    pattern = write_shards(tmp_path, records, [picture(i) for i in range(4)], 3)
    code, report = run(pattern, "--media", "--pictures", str(tmp_path / "sheet.png"))
    assert code == 1
    assert report["files"] == {pattern: {"records": 4, "wrong": 1, "without_media": 0, "missing": None}}
    (error,) = report["errors"]
    assert error["first"][0].startswith(f"{tmp_path}/001.tar: [0003].tasks[0].boxes[0]: x1 is 0.5")
    assert report["pictures"]["drawn"] == 3
    assert report["pictures"]["failed"] == []
