"""Small sets of pictures, laid out as the published ones, or as people have them, through the converter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from downloads import download, unpack
from tpo_head_mask import rle


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "records.jsonl"


@pytest.fixture
def mine(tmp_path: Path, data: Any) -> Path:
    """A folder in which one picture is good, and the others are not without objects.json."""
    root = tmp_path / "mine"
    for name in ("good", "large", "empty", "odd", "none"):
        data.picture(root / f"images/{name}.jpg")
    data.labels(root / "masks/good.png", {1: (1, 1, 9, 9)})
    data.labels(root / "masks/large.png", {1: (1, 1, 9, 9)}, (48, 64))
    data.labels(root / "masks/empty.png", {})
    data.labels(root / "masks/odd.png", {1: (1, 1, 9, 9), 9: (10, 10, 20, 20)})
    data.labels(root / "masks/alone.png", {1: (1, 1, 9, 9)})
    return root


def test_a_folder_of_binary_masks(mine: Path, data: Any, out: Path) -> None:
    (record,), text = data.outcome("folder", out, root=mine)
    assert record["image"] == "mine/images/good.jpg"
    assert "the object" in record["conversations"][0]["value"]
    assert record["tasks"] == [{"head": "mask", "masks": [data.mask_of(1, 1, 9, 9)]}]
    assert data.records_of(out)[0].images[0].is_file()
    assert text.startswith("1 records written, 5 left out\n")
    for reason in (
        "large.png: is 64 x 48 pixels, its image 32 x 24",
        "empty.png: is empty: it holds no value but 0",
        "odd.png: holds the object ids [1, 9]; expected one value",
        "none.jpg: ",
        "alone.png: ",
    ):
        assert reason in text


def test_a_folder_with_words_for_ids(mine: Path, data: Any, out: Path) -> None:
    (mine / "objects.json").write_text(json.dumps({"1": "the dog", "2": None}))
    data.labels(mine / "masks/good.png", {1: (1, 1, 9, 9), 2: (12, 12, 20, 20)})
    (record,), text = data.outcome("folder", out, root=mine)
    assert record["id"] == "folder:good/1"
    assert "the dog" in record["conversations"][0]["value"]
    assert "holds the object ids [9], which objects.json does not list" in text
    for wrong in ({"0": "dog"}, {"dog": "dog"}, {"1": ""}, {"1": 5}, {"²": "dog"}, {"9" * 5000: "dog"}):
        (mine / "objects.json").write_text(json.dumps(wrong))
        _, text = data.outcome("folder", out.with_name("b.jsonl"), root=mine)
        assert "expected an id above 0 with its words, or null" in text


def test_a_folder_with_questions(mine: Path, data: Any, out: Path) -> None:
    lines = [
        {"image": "good.jpg", "question": "Which animal would purr?"},
        {"image": "odd.jpg", "question": "What are the two?", "objects": [9, 1]},
        {"image": "odd.jpg", "question": "Which?"},
        {"image": "odd.jpg", "question": "Which?", "objects": [2]},
        {"image": "cat.jpg", "question": "Which?"},
        {"image": "good.jpg"},
    ]
    (mine / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (first, second), text = data.outcome("folder", out, root=mine)
    assert (first["id"], first["conversations"][0]["value"]) == ("folder:good/1", "<image>\nWhich animal would purr?")
    assert [task["masks"] for task in second["tasks"]] == [[data.mask_of(10, 10, 20, 20)], [data.mask_of(1, 1, 9, 9)]]
    for reason in (
        "questions.jsonl:3: is None; expected objects: which of the ids [1, 9] answer the question",
        "questions.jsonl:4: objects: is [2]; expected ids that odd.png holds, of [1, 9]",
        "questions.jsonl:5: image: is 'cat.jpg'; expected the name of a picture in images/",
        "questions.jsonl:6: question: is missing",
        "left out 3 x no question is about the picture",
    ):
        assert reason in text, text
    (mine / "objects.json").write_text("{}")
    assert "holds objects.json and questions.jsonl; expected one of them" in data.outcome("folder", out, root=mine)[1]


CLOCK = "ReasonSeg/train/clock.json"
LISA = json.loads(download("mask", "reason-seg")["files"][CLOCK])
HOLE = {"label": "ignore", "points": [[5, 5], [9, 5], [9, 9], [5, 9]]}


def lisa(**changes: Any) -> Path:
    unpack(download("mask", "reason-seg"))
    Path(CLOCK).write_bytes(json.dumps(LISA | changes, ensure_ascii=False).encode("cp1252"))
    return Path("ReasonSeg")


def test_reason_seg(data: Any, out: Path) -> None:
    shapes = [HOLE, *LISA["shapes"], {"label": "flag", "points": [[0, 0], [31, 0], [31, 23]]}]
    records, text = data.outcome("reason-seg", out, root=lisa(shapes=shapes))
    assert [record["id"] for record in records] == ["reason-seg:clock/0", "reason-seg:clock/1"]
    assert "the thing that tells time" in records[0]["conversations"][0]["value"]
    expected = np.zeros(data.size, bool)
    expected[2:21, 2:21] = True  # outlines are painted too
    expected[5:10, 5:10] = False
    assert np.array_equal(rle.decode(records[0]["tasks"][0]["masks"][0]), expected)
    assert "changed 1 x areas to ignore became background" in text
    root = lisa(text=["What is shown… in the café?"], is_sentence=True)  # in cp1252
    (record,), _ = data.outcome("reason-seg", out, root=root)
    assert "What is shown… in the café?" in record["conversations"][0]["value"]
    records, _ = data.outcome("reason-seg", out, root=lisa(), texts="first")
    assert len(records) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapes": []}, "clock.json: shapes: is '0 shapes'; expected at least one labelled 'target'"),
        ({"shapes": [HOLE]}, "clock.json: shapes: is '1 shapes'; expected at least one labelled 'target'"),
        ({"shapes": [HOLE | {"points": [[0, 0], [9, 9]]}]}, "shapes[0].points: is [[0, 0], [9, 9]]; expected three"),
        ({"shapes": [{"label": "target", "points": [[90, 90], [99, 90], [99, 99]]}]}, "expected a target within its p"),
        ({"text": []}, "clock.json: text: is []; expected at least one text"),
    ],
)
def test_wrong_shapes(data: Any, out: Path, changes: dict[str, Any], message: str) -> None:
    assert message in data.outcome("reason-seg", out, root=lisa(**changes))[1]


def test_semantic(data: Any, out: Path) -> None:
    unpack(download("mask", "semantic"))
    images, maps = Path("images/training"), Path("annotations/training")
    for name in ("b", "c"):
        data.picture(images / f"{name}.jpg")
    data.labels(maps / "b.png", {151: (0, 0, 5, 5)})
    data.picture(maps / "c.png")
    options = {"images": images, "maps": maps, "classes": Path("classes.txt")}
    (record,), text = data.outcome("semantic", out, **options)
    assert "wall, sky" in record["conversations"][0]["value"]
    assert [task["masks"] for task in record["tasks"]] == [[data.mask_of(0, 0, 5, 5)], [data.mask_of(6, 6, 9, 9)]]
    assert "b.png: holds the values [151]; expected 1 to 3" in text
    assert "c.png: is an image of mode RGB, in colours" in text
    Path("classes.txt").write_text("\n")
    assert "classes.txt: names no class" in data.outcome("semantic", out, **options)[1]


def test_grand_f(data: Any, out: Path) -> None:
    layout = download("mask", "grand-f")
    unpack(layout)
    ((name, text),) = layout["files"].items()
    (good,) = json.loads(text)
    cats, mat = (good["groundings"][phrase] for phrase in ("Two cats", "a mat"))
    mask, other = cats["rle_masks"]
    wrong = [
        {"a mat": mat | {"token_positives": [0, 99]}},
        {"a mat": mat | {"rle_masks": [rle.encode(np.ones((4, 4)))]}},
        {"a mat": mat | {"token_positives": [5, 12]}, "Two cats": cats},
    ]
    Path(name).write_text(json.dumps([good, *(good | {"groundings": groundings} for groundings in wrong)]))
    (record,), text = data.outcome("grand-f", out, source=Path(name), images=Path("images"))
    assert record["conversations"][1]["value"] == "Two cats <mask> <mask> sit on a mat <mask>."
    assert [task["masks"][0] for task in record["tasks"]] == [mask, other, other]
    for message in (
        "[1].groundings.a mat.token_positives: is [0, 99]; expected [start, end] within the 22 characters",
        "[2].groundings.a mat.rle_masks[0]: is of size [4, 4], its image of [24, 32]",
        "[3].groundings.a mat.token_positives: is [5, 12]; expected no overlap with a phrase that ends at 8",
    ):
        assert message in text, text
