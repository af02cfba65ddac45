from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tpo_plugin.data import records as records_module
from tpo_plugin.data.records import Records, parse_record, prompt_record
from tpo_plugin.errors import RecordError

Write = Callable[..., Path]

GOOD: dict[str, Any] = {
    "id": "42",
    "image": "a.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is at <region>, and where are the dogs?"},
        {"from": "gpt", "value": "A cat. Dogs: <region>, tip <point>."},
    ],
    "tasks": [
        {"head": "region", "boxes": [[0.1, 0.2, 0.3, 0.4]]},
        {"head": "point", "xy": [0.5, 0.5]},
        {"head": "region", "boxes": [[0, 0, 1, 1], [0.5, 0.5, 0.6, 0.6]], "time": 9.8},
    ],
}
CHAT = {"id": "1", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": " Hello. "}]}


def changed(**changes: Any) -> dict[str, Any]:
    record = copy.deepcopy(GOOD)
    for path, value in changes.items():
        target: Any = record
        *parents, last = [int(p) if p.isdigit() else p for p in path.split("__")]
        for parent in parents:
            target = target[parent]
        target[last] = value
    return record


def test_placeholders_become_tokens_and_take_tasks_in_order(tpo: Any, write_records: Write, tmp_path: Path) -> None:
    (record,) = Records(write_records([GOOD]), tpo)
    user, assistant = record.turns
    assert (user.role, assistant.role) == ("user", "assistant")
    assert user.text == "<image>\nWhat is at <region_box>, and where are the dogs?"
    assert assistant.text == "A cat. Dogs: <box_begin><boxes><box_begin><boxes>, tip <point_begin><point>."
    assert user.tasks == (GOOD["tasks"][0],)
    assert assistant.tasks == (GOOD["tasks"][2], GOOD["tasks"][1])
    assert record.images == (tmp_path / "a.png",)
    assert record.id == "42"


def test_json_list_chat_and_blank_lines(tpo: Any, write_records: Write, tmp_path: Path) -> None:
    listed = Records(write_records([CHAT, GOOD], "llava.json"), tpo, media_root="/media")
    assert len(listed) == 2
    assert [turn.text for turn in listed[0].turns] == ["Hi", "Hello."]
    assert listed[-1].images == (Path("/media/a.png"),)
    path = write_records([CHAT])
    path.write_bytes(b"\xef\xbb\xbf\n" + path.read_bytes() + b"\r\n\r\n" + path.read_bytes() + b"\n")
    lines = Records(path, tpo)
    assert [record.place for record in lines] == [f"{path}:2", f"{path}:4"]


def test_system_turn_several_images_and_video_under_an_image_tag(tpo: Any) -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image> or <image>?"},
        {"from": "gpt", "value": "x"},
    ]
    two = parse_record({"image": ["a.png", "/b.png"], "conversations": turns}, tpo, media_root="/r")
    assert two.images == (Path("/r/a.png"), Path("/b.png"))
    clips = parse_record({"video": ["a.mp4", "b.mp4"], "conversations": turns}, tpo)
    assert clips.turns[1].text == "<video> or <video>?"
    assert clips.videos == (Path("a.mp4"), Path("b.mp4"))
    assert not clips.images


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"conversations": None}, "conversations", "is missing"),
        ({"conversations": []}, "conversations", "expected a list of turns"),
        ({"conversations__0": {"from": "human"}}, "conversations[0]", "a text 'value'"),
        ({"conversations__0__from": "humna"}, "conversations[0].from", "is 'humna'; did you mean 'human'?"),
        ({"conversations__0__from": "gpt"}, "conversations[0].from", "is 'gpt', expected 'human'"),
        ({"conversations__1__from": "human"}, "conversations[1].from", "is 'human', expected 'gpt'"),
        ({"conversations": GOOD["conversations"][:1]}, "conversations", "ends with a 'human' turn"),
        ({"image": 3}, "image", "is 3, expected a path"),
        ({"image": ["a.png", "b.png"]}, "image", "has 2 file(s), the conversation 1 tag(s) <image>"),
        ({"image": None}, "image", "has 0 file(s), the conversation 1 tag(s) <image>"),
        ({"video": "a.mp4"}, "video", "has 1 file(s), the conversation 0 tag(s) <video>"),
        ({"images": ["a.png"]}, "images", "is not read; expected 'image'"),
        ({"audio": "a.wav"}, "audio", "is not read; expected pictures and videos alone"),
        ({"conversations__1__value": "<image>"}, "conversations[1].value", "holds the tag <image>"),
        ({"tasks": 3}, "tasks", "is 3, expected a list"),
        ({"tasks__0": {"boxes": []}}, "tasks[0]", "expected an object with 'head'"),
        (
            {"tasks__1__head": "pont"},
            "tasks[1].head",
            "is 'pont', which is not among the applied heads; did you mean",
        ),
        ({"tasks__2__time": -1}, "tasks[2].time", "is -1; expected seconds"),
        ({"tasks__2": {"head": "region"}}, "tasks[2]", "head 'region' misses field 'boxes'"),
        ({"tasks__2__boxes": []}, "tasks[2]", "nothing to predict"),
        ({"tasks__2__boxes__1": [0.5, 0.5, 0.4, 0.6]}, "tasks[2].boxes[1]", "is [0.5, 0.5, 0.4, 0.6]; expected x1"),
        ({"tasks__2__boxes__0": [0, 0, 1, 1.5]}, "tasks[2].boxes[0]", "is [0, 0, 1, 1.5]; expected x1, y1"),
        (
            {"tasks": GOOD["tasks"][:2]},
            "tasks",
            "has 1 task(s) of head 'region', the conversation has 2",
        ),
        ({"tasks": []}, "tasks", "has 0 task(s) of head 'region', the conversation has 2 placeholder(s)"),
        (
            {"conversations__1__value": "<point>"},
            "tasks",
            "has 2 task(s) of head 'region', the conversation has 1",
        ),
        ({"conversations__1__value": "<boxes>"}, "conversations[1].value", "holds '<boxes>', a token of head 'region'"),
        (
            {"conversations__1__value": "<point_begin>"},
            "conversations[1].value",
            "write the placeholder <point> and",
        ),
        ({"conversations__0__value": "<image><region_box>"}, "conversations[0].value", "holds '<region_box>'"),
    ],
)
def test_errors_name_file_line_and_field(
    tpo: Any, write_records: Write, change: dict[str, Any], field: str, message: str
) -> None:
    path = write_records([CHAT, changed(**change)])
    with pytest.raises(RecordError) as caught:
        Records(path, tpo)
    assert (caught.value.file, caught.value.line, caught.value.field) == (str(path), 2, field)
    assert str(caught.value).startswith(f"{path}:2: {field}: ")
    assert message in str(caught.value)
    path = write_records([CHAT, changed(**change)], "list.json")
    with pytest.raises(RecordError) as caught:
        Records(path, tpo)
    assert str(caught.value).startswith(f"{path}: [1].{field}: ")


def test_input_placeholder_of_a_head_without_input(tpo: Any, write_records: Write) -> None:
    record = changed(conversations__0__value="<image><region> <point>", conversations__1__value="<region>")
    with pytest.raises(RecordError, match=r"conversations\[0\].value: holds the placeholder <point>, but head"):
        Records(write_records([record]), tpo)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": 1', "is not valid JSON: Expecting"),
        (b'{"id": NaN}', "NaN is not JSON"),
        (b'{"id": "\xff"}', "is not valid JSON: 'utf-8'"),
        (b"[1]", "is list, expected an object"),
    ],
)
def test_broken_lines(tpo: Any, write_records: Write, line: bytes, message: str) -> None:
    path = write_records([CHAT])
    path.write_bytes(path.read_bytes() + b"\n\n" + line + b"\n")
    with pytest.raises(RecordError, match=r"records\.jsonl:3") as caught:
        Records(path, tpo)
    assert message in str(caught.value)


def test_broken_list_empty_file_and_missing_file(tpo: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("[{]")
    with pytest.raises(RecordError, match=r"r\.json: is not valid JSON"):
        Records(path, tpo)
    for text in ("", "\n\n", "[]"):
        path.write_text(text)
        with pytest.raises(RecordError, match=r"r\.json: holds no record"):
            Records(path, tpo)
    with pytest.raises(RecordError, match=r"none\.json: cannot be read: No such file"):
        Records(tmp_path / "none.json", tpo)


def test_large_source_is_checked_on_first_use(tpo: Any, write_records: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "CHECK_LIMIT", 1)
    records = Records(write_records([CHAT, {"id": 3}]), tpo)
    assert records[0].id == "1"
    with pytest.raises(RecordError, match=r"records.jsonl:2: conversations: is missing"):
        records[1]
    with pytest.raises(IndexError):
        records[2]


def test_arrow_dataset(tpo: Any) -> None:
    datasets = pytest.importorskip("datasets")
    plain = {key: value for key, value in GOOD.items() if key != "tasks"}
    rows = [CHAT | {"image": None, "tasks": []}, plain | {"tasks": GOOD["tasks"]}]
    arrow = datasets.Dataset.from_list(rows)
    assert arrow[1]["tasks"][1]["boxes"] is None  # Arrow's way to say that a point has no boxes
    records = Records(arrow, tpo, media_root="/m")
    assert records[1] == Records(rows, tpo, media_root="/m")[1]
    assert records[1].turns[1].tasks[1] == {"head": "point", "xy": [0.5, 0.5]}


def test_prompts(tpo: Any, tmp_path: Path) -> None:
    box = {"head": "region", "boxes": [[0, 0, 1, 1]]}
    record = prompt_record(tpo, "What is in <region>?", images=[tmp_path / "a.png"], tasks=[box])
    assert record.turns[0].text == "<image>\nWhat is in <region_box>?"
    assert record.images == (tmp_path / "a.png",)
    with pytest.raises(RecordError, match=r"prompt: tasks: has 0 task\(s\) of head 'region'"):
        prompt_record(tpo, "What is in <region>?")
    answered = parse_record(GOOD, tpo)
    assert answered.prompt().turns == answered.turns[:1]
    assert record.prompt() is record


def test_reading_records_needs_no_torch() -> None:
    code = "import sys, tpo_plugin.data.records, tpo_plugin.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
