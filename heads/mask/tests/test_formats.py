"""Small datasets, laid out as the published ones, through the converter and the core's reader of records."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tpo_head_mask import rle
from tpo_head_mask.convert import convert
from tpo_head_mask.masks import check_task

import tpo_plugin as tpo
from tpo_plugin.data import Records, VideoOptions, read_sample
from tpo_plugin.tokens import HeadTokens

HEIGHT, WIDTH = 24, 32


class Head(tpo.TaskHead):
    """Checks tasks as the mask head does, without its network."""

    def check_task(self, task: dict[str, Any]) -> None:
        check_task(task)


def records_of(path: Path) -> Records:
    tokens = HeadTokens("<track_begin>", "<tracking>", "<track_box>", 1, 2, 3)
    return Records(path, SimpleNamespace(codecs={"mask": Head()}, tokens={"mask": tokens}))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def picture(path: Path, grey: int = 128, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), grey, np.uint8)).save(path)


def labels(
    path: Path, objects: Mapping[int, tuple[int, int, int, int]], size: tuple[int, int] = (HEIGHT, WIDTH)
) -> None:
    """A palette PNG with boxes y1, x1, y2, x2 of object ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(size, np.uint8)
    for number, (y1, x1, y2, x2) in objects.items():
        values[y1:y2, x1:x2] = number
    image = Image.fromarray(values)
    image.putpalette(list(range(256)) * 3)
    image.save(path)


def mask_of(y1: int, x1: int, y2: int, x2: int) -> rle.RLE:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y1:y2, x1:x2] = True
    return rle.encode(mask)


def davis_root(root: Path) -> Path:
    """Sequence "bear": object 1 moves, object 2 appears in frame 1; "cat" has a map of another size."""
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/train.txt").write_text("bear\ncat\n")
    for k in range(3):
        picture(root / f"JPEGImages/480p/bear/{k:05d}.jpg", 40 * k)
        objects = {1: (2, 2 + k, 8, 10 + k)} | ({2: (12, 4, 20, 12)} if k else {})
        labels(root / f"Annotations/480p/bear/{k:05d}.png", objects)
        picture(root / f"JPEGImages/480p/cat/{k:05d}.jpg")
        labels(root / f"Annotations/480p/cat/{k:05d}.png", {1: (0, 0, 5, 5)}, (12, 16))
    return root


def test_davis(tmp_path: Path) -> None:
    out = tmp_path / "records.jsonl"
    result = convert("davis", davis_root(tmp_path / "DAVIS"), out)
    assert (result.num_records, [s.id for s in result.skipped]) == (2, ["cat"])
    assert "00000.png: is 16 x 12 pixels, its image 32 x 24; expected the same size" in result.report()
    first, second = lines(out)
    assert first["id"] == "bear/1"
    given, target = first["tasks"]
    assert given == {"head": "mask", "box": [2 / 32, 2 / 24, 10 / 32, 8 / 24], "time": 0.0}
    assert target["masks"] == [mask_of(2, 2 + k, 8, 10 + k) for k in range(3)]
    assert target["times"] == pytest.approx([0, 1 / 24, 2 / 24], abs=1e-6)
    given, target = second["tasks"]
    assert target["masks"][0] is None
    assert given["time"] == pytest.approx(1 / 24, abs=1e-6)
    assert not list(tmp_path.glob(".*"))


def test_records_are_readable_with_their_frames(tmp_path: Path) -> None:
    out = tmp_path / "out" / "records.jsonl"
    convert("davis", davis_root(tmp_path / "DAVIS"), out)
    record = records_of(out)[0]
    assert [turn.text for turn in record.turns] == [
        "<video>\nTrack the object in <track_box>.",
        "Here it is: <track_begin><tracking>.",
    ]
    clip = read_sample(record, VideoOptions(num_frames=3)).videos[0]
    assert clip.frames.shape == (3, HEIGHT, WIDTH, 3)
    assert clip.frames.mean((1, 2, 3)) == pytest.approx([0, 40, 80], abs=3)
    assert clip.times_s == pytest.approx([0, 1 / 24, 2 / 24], abs=1e-6)
    assert clip.duration_s == pytest.approx(3 / 24, abs=1e-6)


def test_ref_davis(tmp_path: Path) -> None:
    root, out = davis_root(tmp_path / "DAVIS"), tmp_path / "records.jsonl"
    texts = root / "davis_text_annotations"
    texts.mkdir()
    (texts / "Davis17_annot1.txt").write_text('bear 1 "the big bear."\nbear 7 "a fish"\nother 1 "not in the split"\n')
    (texts / "Davis17_annot2.txt").write_bytes('bear 2 "a caf\xe9 bear"\n'.encode("latin-1"))
    result = convert("ref-davis", root, out)
    assert [s.reason for s in result.skipped] == ["its annotations hold no object 7; they hold [1, 2]"]
    found = {record["id"]: record for record in lines(out)}
    assert sorted(found) == ["bear/1/Davis17_annot1/1", "bear/2/Davis17_annot2/1"]
    record = found["bear/1/Davis17_annot1/1"]
    assert [turn["value"] for turn in record["conversations"]] == [
        "<video>\nSegment the big bear.",
        "Here it is: <mask>.",
    ]
    assert len(record["tasks"]) == 1
    assert "Segment a café bear." in found["bear/2/Davis17_annot2/1"]["conversations"][0]["value"]
    (texts / "Davis17_annot1.txt").write_text("bear the big bear\n")
    with pytest.raises(tpo.RecordError, match=r"annot1\.txt:1: is 'bear the big bear'; expected: sequence object"):
        convert("ref-davis", root, out)
    assert len(lines(out)) == 2  # what was there is kept


def youtube_root(root: Path, expressions: dict[str, Any]) -> Path:
    for number in (5, 10, 20):
        picture(root / f"train/JPEGImages/v1/{number:05d}.jpg")
        labels(root / f"train/Annotations/v1/{number:05d}.png", {1: (1, 1, 9, 9), 3: (10, 10, 20, 20)})
    path = root / "meta_expressions/train/meta_expressions.json"
    path.parent.mkdir(parents=True)
    entry = {"expressions": expressions, "frames": ["00010", "00005", "00020"]}
    path.write_text(json.dumps({"videos": {"v1": entry}}))
    return root


def test_ref_youtube_vos(tmp_path: Path) -> None:
    out = tmp_path / "records.jsonl"
    expressions = {"0": {"exp": "a dog", "obj_id": "3"}, "1": {"exp": "a ghost", "obj_id": "2"}}
    result = convert("ref-youtube-vos", youtube_root(tmp_path / "yt", expressions), out)
    assert [(s.id, s.reason) for s in result.skipped] == [
        ("v1/1", "its annotations hold no object 2; they hold [1, 3]")
    ]
    (record,) = lines(out)
    assert record["tasks"][0]["times"] == pytest.approx([0, 5 / 30, 15 / 30], abs=1e-6)
    assert record["tasks"][0]["masks"] == [mask_of(10, 10, 20, 20)] * 3
    clip = read_sample(records_of(out)[0], VideoOptions(num_frames=3)).videos[0]
    assert clip.times_s == pytest.approx([0, 5 / 30, 15 / 30], abs=1e-6)
    assert clip.duration_s == pytest.approx(25 / 30, abs=1e-6)


@pytest.mark.parametrize(
    ("expressions", "message"),
    [
        ({"0": {"exp": "a dog"}}, r"videos\.v1\.expressions\.0\.obj_id: is missing; expected a text or a whole number"),
        ({"0": {"exp": 5, "obj_id": "1"}}, r"videos\.v1\.expressions\.0\.exp: is 5; expected a text"),
        (
            {"0": {"exp": "a dog", "obj_id": "one"}},
            r"videos\.v1\.expressions\.0\.obj_id: is 'one'; expected an obj",
        ),
    ],
)
def test_wrong_expressions_name_file_and_field(tmp_path: Path, expressions: dict[str, Any], message: str) -> None:
    root = youtube_root(tmp_path / "yt", expressions)
    with pytest.raises(tpo.RecordError, match=rf"meta_expressions\.json: {message}"):
        convert("ref-youtube-vos", root, tmp_path / "records.jsonl")
    assert not list(tmp_path.glob("*records*"))


def test_mevis(tmp_path: Path) -> None:
    root, out = tmp_path / "mevis", tmp_path / "records.jsonl"
    for k in range(2):
        picture(root / f"train/JPEGImages/v1/{k:05d}.jpg")
    expressions = {
        "0": {"exp": "The two cats.", "obj_id": [0, 1], "anno_id": [10, 11]},
        "1": {"exp": "a ghost", "obj_id": [2], "anno_id": [12]},
    }
    meta = {"videos": {"v1": {"expressions": expressions, "frames": ["00000", "00001"], "vid_id": 0}}}
    masks = {"10": [mask_of(1, 1, 5, 5), None], "11": [mask_of(8, 8, 20, 20), mask_of(8, 9, 20, 21)]}
    (root / "train/meta_expressions.json").write_text(json.dumps(meta))
    (root / "train/mask_dict.json").write_text(json.dumps(masks))
    result = convert("mevis", root, out)
    assert [s.id for s in result.skipped] == ["v1/1"]
    assert "holds no masks [12]" in result.skipped[0].reason
    (record,) = lines(out)
    assert record["conversations"][0]["value"] == "<video>\nSegment The two cats."
    assert record["conversations"][1]["value"] == "Here they are: <mask>, <mask>."
    assert [task["masks"] for task in record["tasks"]] == list(masks.values())
    assert records_of(out)[0].turns[1].text.count("<tracking>") == 2

    masks["11"][0]["counts"] = "5"
    (root / "train/mask_dict.json").write_text(json.dumps(masks))
    with pytest.raises(tpo.RecordError, match=r"mask_dict\.json: 11\[0\]: counts covers 5 pixels"):
        convert("mevis", root, out)
    masks["11"] = [mask_of(8, 8, 20, 20)]
    (root / "train/mask_dict.json").write_text(json.dumps(masks))
    with pytest.raises(tpo.TPOError, match="11 has masks for 1 frames, the video has 2"):
        convert("mevis", root, out)


def test_sa_v_train(tmp_path: Path) -> None:
    root, out = tmp_path / "sav", tmp_path / "records.jsonl"
    (root / "sav_000").mkdir(parents=True)
    (root / "sav_000/sav_000001.mp4").write_bytes(b"a video")
    empty, small = mask_of(0, 0, 0, 0), mask_of(1, 2, 3, 4)
    data = {
        "video_id": "sav_000001",
        "video_height": float(HEIGHT),
        "video_width": float(WIDTH),
        "masklet": [[small, empty], [empty, empty], [small, empty]],
        "masklet_id": [0, 5],
    }
    path = root / "sav_000/sav_000001_manual.json"
    path.write_text(json.dumps(data))
    result = convert("sa-v", root, out)
    (record,) = lines(out)
    assert record["id"] == "sav_000001_manual/0"
    assert record["video"] == "sav/sav_000/sav_000001.mp4"  # below the records' folder
    given, target = record["tasks"]
    assert target["masks"] == [small, None, small]
    assert target["times"] == pytest.approx([0, 1 / 6, 2 / 6], abs=1e-6)
    assert given["box"] == [2 / 32, 1 / 24, 4 / 32, 3 / 24]
    assert [(s.id, s.reason) for s in result.skipped] == [
        ("sav_000001_manual/5", "the object is in no annotated frame")
    ]
    path.write_text(json.dumps(data | {"masklet": [[small]]}))
    with pytest.raises(tpo.RecordError, match=r"manual\.json: masklet\[0\]: has 1 masks for 2 masklets"):
        convert("sa-v", root, out)
    path.write_text(json.dumps(data | {"video_height": 100}))
    with pytest.raises(tpo.TPOError, match=r"masklet 0\[0\] is of size \[24, 32\], its frame of \[100, 32\]"):
        convert("sa-v", root, out)
    path.with_name("sav_000001.mp4").unlink()
    with pytest.raises(tpo.TPOError, match=r"sav_000001\.mp4: no such file"):
        convert("sa-v", root, out)


def test_sa_v_val(tmp_path: Path) -> None:
    root, out = tmp_path / "sav_val", tmp_path / "records.jsonl"
    for k in range(9):
        picture(root / f"JPEGImages_24fps/v1/{k:05d}.jpg")
    for k in (0, 4, 8):
        labels(root / f"Annotations_6fps/v1/000/{k:05d}.png", {1: (1, 1, 9, 9)} if k else {})
        labels(root / f"Annotations_6fps/v1/001/{k:05d}.png", {1: (1, 1, 9, 9), 2: (12, 12, 15, 15)})
    result = convert("sa-v", root, out)
    (record,) = lines(out)
    assert record["tasks"][1]["times"] == pytest.approx([0, 4 / 24, 8 / 24], abs=1e-6)
    assert record["tasks"][1]["masks"] == [None, mask_of(1, 1, 9, 9), mask_of(1, 1, 9, 9)]
    assert "001: holds the values [0, 1, 2], expected two" in result.skipped[0].reason


def lasot_root(root: Path, boxes: str = "4,6,8,12\n5,6,8,12\n-4,6,8,30\n", flags: str = "0,1,0") -> Path:
    path = root / "bear/bear-1"
    for k in range(1, 4):
        picture(path / f"img/{k:08d}.jpg")
    (path / "groundtruth.txt").write_text(boxes)
    (path / "full_occlusion.txt").write_text(flags)
    (path / "out_of_view.txt").write_text("0,0,0\n")
    return root


def test_lasot(tmp_path: Path) -> None:
    root, out = lasot_root(tmp_path / "lasot"), tmp_path / "records.jsonl"
    assert convert("lasot", root, out).num_records == 1
    given, target = lines(out)[0]["tasks"]
    box = [4 / 32, 6 / 24, 12 / 32, 18 / 24]
    assert given == {"head": "mask", "box": box, "time": 0.0}
    assert target["boxes"] == [box, None, [0, 6 / 24, 4 / 32, 1]]  # absent, clipped to the image
    assert target["times"] == pytest.approx([0, 1 / 30, 2 / 30], abs=1e-6)
    assert records_of(out)[0].turns[1].tasks[0]["boxes"][1] is None
    (root / "testing_set.txt").write_text("bear-1\n")
    assert convert("lasot", root, out, "test").num_records == 1
    (root / "training_set.txt").write_text("bear-2\n")
    with pytest.raises(tpo.TPOError, match="gives no record of format 'lasot'"):
        convert("lasot", root, out, "train")


def test_wrong_boxes_are_named(tmp_path: Path) -> None:
    out = tmp_path / "records.jsonl"
    with pytest.raises(tpo.RecordError, match=r"groundtruth\.txt:2: is '5,6,8'; expected x,y,width,height in pixels"):
        convert("lasot", lasot_root(tmp_path / "a", "4,6,8,12\n5,6,8\n4,6,8,30\n"), out)
    with pytest.raises(tpo.TPOError, match=r"has 3 frames, 2 boxes in groundtruth\.txt and 3 flags"):
        convert("lasot", lasot_root(tmp_path / "b", "4,6,8,12\n5,6,8,9\n"), out)
    with pytest.raises(tpo.TPOError, match=r"full_occlusion\.txt has 2 flags, out_of_view\.txt 3"):
        convert("lasot", lasot_root(tmp_path / "c", flags="0,1"), out)


def test_got10k(tmp_path: Path) -> None:
    root, out = tmp_path / "got", tmp_path / "records.jsonl"
    path = root / "train/GOT-10k_Train_000001"
    for k in range(1, 4):
        picture(path / f"{k:08d}.jpg")
    (path / "groundtruth.txt").write_text("4.0,6.0,8.0,12.0\n" * 3)
    (path / "absence.label").write_text("0\n0\n1\n")
    (path / "meta_info.ini").write_text("[METAINFO]\nurl: https://video?v=1%2\nanno_fps: 5Hz\n")
    (root / "train/list.txt").write_text("GOT-10k_Train_000001\nGOT-10k_Train_000002\n")
    result = convert("got-10k", root, out)
    assert [s.id for s in result.skipped] == ["GOT-10k_Train_000002"]
    target = lines(out)[0]["tasks"][1]
    assert target["boxes"] == [[4 / 32, 6 / 24, 12 / 32, 18 / 24]] * 2 + [None]
    assert target["times"] == pytest.approx([0, 0.2, 0.4])
    (path / "meta_info.ini").write_text("[METAINFO]\nanno_fps: fast\n")
    with pytest.raises(tpo.RecordError, match=r"meta_info\.ini: cannot be understood"):
        convert("got-10k", root, out)


def folder_root(root: Path) -> Path:
    for name in ("good", "large", "empty", "odd", "none"):
        picture(root / f"images/{name}.jpg")
    labels(root / "masks/good.png", {1: (1, 1, 9, 9)})
    labels(root / "masks/large.png", {1: (1, 1, 9, 9)}, (48, 64))
    labels(root / "masks/empty.png", {})
    labels(root / "masks/odd.png", {1: (1, 1, 9, 9), 9: (10, 10, 20, 20)})
    labels(root / "masks/alone.png", {1: (1, 1, 9, 9)})
    return root


def test_a_folder_of_binary_masks(tmp_path: Path) -> None:
    out = tmp_path / "records.jsonl"
    result = convert("folder", folder_root(tmp_path / "mine"), out)
    (record,) = lines(out)
    assert record["image"] == "mine/images/good.jpg"
    assert record["conversations"][0]["value"] == "<image>\nSegment the object."
    assert record["tasks"] == [{"head": "mask", "masks": [mask_of(1, 1, 9, 9)]}]
    assert records_of(out)[0].images[0].is_file()
    reasons = {item.id: item.reason for item in result.skipped}
    assert sorted(reasons) == ["alone.png", "empty.jpg", "large.jpg", "none.jpg", "odd.jpg"]
    assert "is 64 x 48 pixels, its image 32 x 24" in reasons["large.jpg"]
    assert "is empty: it holds no value but 0" in reasons["empty.jpg"]
    assert "holds the object ids [1, 9]; expected one value" in reasons["odd.jpg"]
    assert "holds no none.png" in reasons["none.jpg"]
    assert "holds no image of that name" in reasons["alone.png"]
    assert result.report().startswith(f"{out}: 1 records, 5 skipped\n  ")


def test_a_folder_with_words_for_ids(tmp_path: Path) -> None:
    root, out = folder_root(tmp_path / "mine"), tmp_path / "records.jsonl"
    (root / "objects.json").write_text(json.dumps({"1": "the dog", "2": None}))
    labels(root / "masks/good.png", {1: (1, 1, 9, 9), 2: (12, 12, 20, 20)})
    result = convert("folder", root, out)
    (record,) = lines(out)
    assert (record["id"], record["conversations"][0]["value"]) == ("good/1", "<image>\nSegment the dog.")
    reasons = {item.id: item.reason for item in result.skipped}
    assert "holds the object ids [9], which objects.json does not list" in reasons["odd.jpg"]
    for wrong in ({"0": "dog"}, {"dog": "dog"}, {"1": ""}, {"1": 5}):
        (root / "objects.json").write_text(json.dumps(wrong))
        with pytest.raises(tpo.RecordError, match=r"objects\.json: .*: is .*; expected an id above 0"):
            convert("folder", root, out)


@pytest.mark.parametrize(
    ("format", "make", "split", "message"),
    [
        ("coco", None, None, r"format is 'coco'; expected one of 'davis'"),
        ("davis", None, None, r"ImageSets/2017: no such folder; expected DAVIS 2017"),
        ("davis", davis_root, "tset", r"tset\.txt: no such file; splits are \['train'\]"),
        ("ref-davis", davis_root, None, r"davis_text_annotations: no such folder"),
        ("ref-youtube-vos", None, None, r"meta_expressions\.json: cannot be read"),
        ("mevis", None, "valid", r"valid: no such folder; expected a split of MeViS"),
        ("sa-v", None, None, r"holds neither \*_manual\.json"),
        ("sa-v", None, "train", "split 'train' was given; SA-V has a folder for each"),
        ("lasot", None, None, "holds no <category>/<sequence>/groundtruth.txt"),
        ("lasot", lasot_root, "val", "split is 'val'; LaSOT has 'train' and 'test'"),
        ("got-10k", None, None, "no such folder; expected a split of GOT-10k"),
        ("folder", None, None, "images: no such folder; expected the images"),
        ("folder", folder_root, "train", "a folder of images has none"),
    ],
)
def test_another_layout_is_named(
    tmp_path: Path, format: str, make: Callable[[Path], Path] | None, split: str | None, message: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    if make:
        make(root)
    with pytest.raises(tpo.TPOError, match=message):
        convert(format, root, tmp_path / "out" / "records.jsonl", split)
    assert not list(tmp_path.glob("out/*records*"))


def test_a_root_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(tpo.TPOError, match="nowhere: no such folder"):
        convert("folder", tmp_path / "nowhere", tmp_path / "records.jsonl")


def test_names_with_quotes_and_media_elsewhere(tmp_path: Path) -> None:
    root = tmp_path / "it's here"
    davis_root(root)
    out = tmp_path / "out" / "records.jsonl"
    convert("davis", root, out)
    listed = (out.parent / "records_videos/bear.ffconcat").read_text().splitlines()
    assert listed[0] == "ffconcat version 1.0"
    assert "it'\\''s here" in listed[1]
    assert read_sample(records_of(out)[0], VideoOptions(num_frames=1)).videos[0].frames.shape == (1, HEIGHT, WIDTH, 3)
