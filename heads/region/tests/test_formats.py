"""Every format of boxes: a small download of its layout becomes these records; what is wrong in one is refused, by its
place and field. The downloads are in layouts.yaml and dialogues.yaml."""

from __future__ import annotations

import gzip
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from downloads import converted, download, downloads, format_of, tpo, unpack
from PIL import Image
from tpo_head_region.formats.coco import Objects365
from tpo_head_region.formats.spelled import Qwen25VL

from tpo_plugin.convert import Picture, Report

HERE = Path(__file__).parent
DOWNLOADS = downloads("region")
LAYOUTS = [each for each in DOWNLOADS if "records" in each]
DIALOGUES = [each for each in DOWNLOADS if "turns" in each]


def boxes(record: dict[str, Any]) -> list[Any]:
    return [task["boxes"] for task in record.get("tasks", ())]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TPO_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("layout", LAYOUTS, ids=format_of)
def test_a_download_becomes_records(layout: dict[str, Any]) -> None:
    unpack(layout)
    said, records = converted(layout)
    assert {record["id"] for record in records} == set(layout["records"]), said
    assert len(records) == len(layout["records"])
    for record in records:
        expected = layout["records"][record["id"]]
        assert boxes(record) == ([expected] if expected else [])
        asked, answer = (turn["value"] for turn in record["conversations"])
        assert asked.startswith("<image>\n")
        assert answer.count("<region>") == bool(expected)
    assert layout.get("says", "") in said


@pytest.mark.parametrize("example", DIALOGUES, ids=format_of)
def test_a_conversation_becomes_a_record(example: dict[str, Any]) -> None:
    unpack(example)
    said, records = converted(example)
    assert len(records) == 1, said
    assert [turn["value"] for turn in records[0]["conversations"]] == example["turns"]
    assert boxes(records[0]) == example.get("boxes", [])


WRONG = [
    # of a dialogue, which has one file, its name is left out
    pytest.param(layout, [*layout["files"], *wrong][-4:], id=f"{format_of(layout)}-{wrong[-2]}")
    for layout in DOWNLOADS
    for wrong in layout.get("wrong", ())
]


@pytest.mark.parametrize(("layout", "wrong"), WRONG)
def test_what_is_wrong_is_refused_by_its_field(layout: dict[str, Any], wrong: list[str]) -> None:
    *swap, message = wrong
    unpack(layout, *swap)
    said, records = converted(layout)
    assert message in said
    assert len(records) < len(layout.get("records", [0])), "the wrong entry was written"


def test_a_convention_is_verified_over_the_whole_source() -> None:
    """lmms-lab's rows, with boxes xywh, read as jxu124's, with boxes xyxy, of which some fit by chance."""
    boxes = [[9, 9, 5, 5], [50, 60, 9, 9], [3, 4, 50, 60], [70, 80, 2, 3], [10, 10, 20, 20]]
    rows = [
        {"ref_id": k, "sentences": [{"sent_id": 0, "sent": "it"}], "bbox": box, "image_path": "a.png"}
        for k, box in enumerate(boxes)
    ]
    unpack({"pictures": {"a.png": [100, 100]}, "files": {"rows.jsonl": "\n".join(map(json.dumps, rows))}})
    command = {"command": "refcoco-jxu124 rows.jsonl --pictures ."}
    said, records = converted(command)
    assert said.startswith(
        "3 of 5 boxes are not [x1, y1, x2, y2] in pixels, as was declared: 3 look like [x, y, width, height]\n"
        "Nothing was written; --keep-going writes the entries that fit."
    )
    assert "rows.jsonl:4: bbox: is [70, 80, 2, 3]" in said
    assert not records
    said, records = converted({"command": command["command"] + " --keep-going"})
    assert "2 records written, 3 left out" in said
    assert len(records) == 2


README = (HERE.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    tpo (.*)$", README, re.MULTILINE)


@pytest.mark.parametrize("packed", ["rows.jsonl.gz", "rows.tar/rows.jsonl"])
def test_pictures_lie_beside_a_source_that_is_packed(packed: str) -> None:
    layout = download("region", "swift")
    unpack(layout)
    if packed.endswith(".gz"):
        Path(packed).write_bytes(gzip.compress(Path("rows.jsonl").read_bytes()))
    else:
        with tarfile.open("rows.tar", "w") as archive:
            archive.add("rows.jsonl")
            archive.add("a.png")
        Path("a.png").unlink()
    Path("rows.jsonl").unlink()
    said, records = converted({"command": f"swift {packed}"})
    assert "1 records written, 0 left out" in said
    assert (Path.cwd() / records[0]["image"]).is_file()


def test_the_pictures_of_another_set_are_left_out() -> None:
    """COCO's train2017 holds the pictures of RefCOCO's val: what was converted of it, packed, says which."""
    other = download("region", "refcoco")
    unpack(other)
    converted(other | {"command": other["command"] + " --split val"})
    Path("val.jsonl.gz").write_bytes(gzip.compress(Path("records.jsonl").read_bytes()))
    text = download("region", "coco")["files"]["instances.json"]
    shared = text.replace('"id": 9, "file_name": "000000000009', '"id": 581857, "file_name": "000000581857')
    unpack({"files": {"instances.json": shared.replace('"image_id": 9', '"image_id": 581857')}})
    unpack({"pictures": {"train2017/000000581857.jpg": [640, 480]}})
    command = "coco instances.json --pictures train2017"
    assert "2 records written, 0 left out" in converted({"command": command})[0]
    said, _ = converted({"command": f"{command} --exclude-images val.jsonl.gz"})
    assert "left out 2 x shows a picture that was to be left out\n  coco:581857:dog: 581857" in said


SLOW = [pytest.param(format, marks=pytest.mark.slow) for format in ("coco", "swift")]


@pytest.mark.parametrize("format", ["refcoco", *SLOW])
def test_a_download_is_trained_on_in_three_commands(format: str) -> None:
    """RefCOCO by the commands of README.md, the others by theirs, on the README's configuration, with a tiny host."""
    hosts = pytest.importorskip("tpo_shapes.host")
    layout, commands = download("region", format), COMMANDS
    if format != "refcoco":
        commands = [f"convert {layout['command']} -o data/refcoco_train.jsonl", *COMMANDS[1:]]
    unpack(layout)
    Path("data").mkdir()
    for source in ("refcoco", "train2014") if format == "refcoco" else ():
        Path(source).rename(Path("data", source))
    processor = hosts.build_processor()
    hosts.build_model(processor.tokenizer, width=32, num_layers=2).save_pretrained("host")
    processor.save_pretrained("host")
    config = yaml.safe_load(re.search(r"```yaml\n(.*?)```", README, re.DOTALL)[1])  # type: ignore[index]
    config["model"] = "host"
    for stage in config["stages"].values():
        stage |= {"steps": 1, "batch_size": 1, "micro_batch_size": 1, "logging_steps": 1}
        stage["trainer"] = {"use_cpu": True, "disable_tqdm": True, "report_to": []}
    Path("refcoco.yaml").write_text(yaml.safe_dump(config))
    convert, check, train = commands
    assert "records written, 0 left out" in tpo(*convert.split())
    assert "none wrong" in tpo(*check.split(), "--workers", "1")
    tpo(*train.split())
    (state,) = Path("runs/refcoco/stage2").rglob("trainer_state.json")
    losses = json.loads(state.read_text())["log_history"][0]
    assert losses["loss_region"] > 0, losses
    assert list(Path("runs/refcoco").rglob("tpo_model.safetensors"))


@pytest.mark.parametrize("size", [(640, 480), (28, 28), (333, 1000), (4000, 3000), (61, 59), (1000, 21)])
def test_qwen2_5_resizes_as_its_processor_does(size: tuple[int, int]) -> None:
    processing = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl")
    limits = {"min_pixels": 56 * 56, "max_pixels": 1280 * 28 * 28}
    seen = Qwen25VL(source=Path("x"), **limits).frame(Picture(Path("x"), *size))
    try:
        expected = processing.smart_resize(size[1], size[0], **limits)
    except ValueError as error:
        pytest.skip(f"this transformers refuses such a picture: {error}")
    assert (seen.height, seen.width) == expected


def test_what_is_left_out_is_not_said_to_be_absent() -> None:
    """A pictured dog, and a cat whose box is missing, are in the picture all the same."""
    Image.new("RGB", (100, 100)).save("1.jpg")
    names = ["dog", "cat", "cup", "pen"]
    things = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "isfake": 1},
        {"id": 2, "image_id": 1, "category_id": 2},
        {"id": 3, "image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 40]},
    ]
    content = {
        "images": [{"id": 1, "width": 100, "height": 100, "file_name": "1.jpg"}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
        "annotations": things,
    }
    Path("a.json").write_text(json.dumps(content))
    entries = list(Objects365(source=Path("a.json"), pictures=Path("."), negatives=9).entries(Report()))
    assert [(entry.id, len(entry.tasks)) for entry in entries] == [("objects365:1:cup", 1), ("objects365:1:pen", 0)]
