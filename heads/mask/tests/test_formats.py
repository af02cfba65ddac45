"""Small sets of videos, laid out as the published ones, through the converter and the core's reader of records."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from downloads import download, unpack

from tpo_plugin.data import VideoOptions, read_sample


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "records.jsonl"


@pytest.fixture
def davis(tmp_path: Path, data: Any) -> Callable[[str], Path]:
    """Sequence "bear": object 1 moves, object 2 appears in frame 1, 255 is void; "cat" has a map of another size."""

    def make(name: str = "DAVIS") -> Path:
        unpack(download("mask", "davis"))
        root = Path("DAVIS").rename(tmp_path / name)
        (root / "ImageSets/2017/train.txt").write_text("bear\ncat\n")
        for k in range(3):
            data.picture(root / f"JPEGImages/480p/bear/{k:05d}.jpg", 40 * k)
            data.picture(root / f"JPEGImages/480p/cat/{k:05d}.jpg")
            data.labels(root / f"Annotations/480p/cat/{k:05d}.png", {1: (0, 0, 5, 5)}, (12, 16))
        return root

    return make


def test_davis(davis: Any, data: Any, out: Path) -> None:
    (first, second), text = data.outcome("davis", out, root=davis())
    assert text.startswith("2 records written, 1 left out")
    assert "00000.png: is 16 x 12 pixels, its image 32 x 24; expected the same size" in text
    assert first["id"] == "davis:bear/1"
    given, target = first["tasks"]
    assert given == {"head": "mask", "box": [2 / 32, 2 / 24, 10 / 32, 8 / 24], "time": 0.0}
    assert target["masks"] == [data.mask_of(2, 2 + k, 8, 10 + k) for k in range(3)]
    assert target["times"] == pytest.approx([0, 1 / 24, 2 / 24], abs=1e-6)
    given, target = second["tasks"]
    assert target["masks"][0] is None
    assert given["time"] == pytest.approx(1 / 24, abs=1e-6)
    assert not list(out.parent.glob(".*"))


def test_records_are_readable_with_their_frames(davis: Any, data: Any, tmp_path: Path) -> None:
    out = tmp_path / "out" / "records.jsonl"  # names with quotes, and media elsewhere
    data.outcome("davis", out, root=davis("it's here"))
    record = data.records_of(out)[0]
    assert "<track_box>" in record.turns[0].text
    assert "<track_begin><tracking>" in record.turns[1].text
    clip = read_sample(record, VideoOptions(num_frames=3)).videos[0]
    assert clip.frames.shape == (3, *data.size, 3)
    assert clip.frames.mean((1, 2, 3)) == pytest.approx([0, 40, 80], abs=3)
    assert clip.times_s == pytest.approx([0, 1 / 24, 2 / 24], abs=1e-6)
    assert clip.duration_s == pytest.approx(3 / 24, abs=1e-6)
    listed = (out.parent / "records_videos/bear.ffconcat").read_text().splitlines()
    assert listed[0] == "ffconcat version 1.0"
    assert "it'\\''s here" in listed[1]


def test_ref_davis(davis: Any, data: Any, out: Path) -> None:
    root = davis()
    texts = root / "davis_text_annotations"
    texts.mkdir()
    (texts / "Davis17_annot1.txt").write_text('bear 1 "the big bear."\nbear 7 "a fish"\nother 1 "not in the split"\n')
    (texts / "Davis17_annot2.txt").write_bytes('bear 2 "a caf\xe9 bear"\n'.encode("latin-1"))
    records, text = data.outcome("ref-davis", out, root=root)
    assert "its annotations hold no object 7; they hold [1, 2]" in text
    found = {record["id"]: record for record in records}
    assert sorted(found) == ["ref-davis:bear/1/Davis17_annot1/1", "ref-davis:bear/2/Davis17_annot2/1"]
    record = found["ref-davis:bear/1/Davis17_annot1/1"]
    assert "the big bear" in record["conversations"][0]["value"]
    assert len(record["tasks"]) == 1
    assert "a café bear" in found["ref-davis:bear/2/Davis17_annot2/1"]["conversations"][0]["value"]
    (texts / "Davis17_annot1.txt").write_text("bear the big bear\n")
    _, text = data.outcome("ref-davis", out.with_name("more.jsonl"), root=root)
    assert "annot1.txt:1: is 'bear the big bear'; expected SEQUENCE OBJECT" in text
    assert len(out.read_text().splitlines()) == 2  # what was there is kept


EXPRESSIONS = "yt/meta_expressions/train/meta_expressions.json"


def youtube(expressions: dict[str, Any]) -> Path:
    layout = download("mask", "ref-youtube-vos")
    old = json.loads(layout["files"][EXPRESSIONS])["videos"]["v1"]["expressions"]
    unpack(layout, EXPRESSIONS, json.dumps(old), json.dumps(expressions))
    return Path("yt")


def test_youtube_vos(data: Any, out: Path) -> None:
    root = youtube({"0": {"exp": "a dog", "obj_id": "3"}, "1": {"exp": "x", "obj_id": "2"}})
    (record,), text = data.outcome("ref-youtube-vos", out, root=root)
    assert "v1/1: its annotations hold no object 2; they hold [1, 3]" in text
    times = pytest.approx([0, 5 / 30, 15 / 30], abs=1e-6)
    assert record["tasks"][0]["times"] == times
    assert record["tasks"][0]["masks"] == [data.mask_of(10, 10, 20, 20)] * 3
    clip = read_sample(data.records_of(out)[0], VideoOptions(num_frames=3)).videos[0]
    assert clip.times_s == times
    assert clip.duration_s == pytest.approx(25 / 30, abs=1e-6)
    records, _ = data.outcome("youtube-vos", out, root=root)
    assert [record["id"] for record in records] == ["youtube-vos:v1/1", "youtube-vos:v1/3"]
    assert records[1]["tasks"][1] == record["tasks"][0]
    data.picture(root / "train/Annotations/v1/00005.png")
    assert "is an image of mode RGB, in colours" in data.outcome("youtube-vos", out, root=root)[1]


@pytest.mark.parametrize(
    ("expressions", "message"),
    [
        ({"0": {"exp": "a dog"}}, "videos.v1.expressions.0.obj_id: is missing; expected a text or a whole number"),
        ({"0": {"exp": 5, "obj_id": "1"}}, "videos.v1.expressions.0.exp: is 5; expected a text"),
        ({"0": {"exp": "a dog", "obj_id": "one"}}, "videos.v1.expressions.0.obj_id: is 'one'; expected an object's id"),
        ({"0": {"exp": "a dog", "obj_id": "²"}}, "videos.v1.expressions.0.obj_id: is '²'; expected an object's id"),
        ({"0": {"exp": "a dog", "obj_id": "9" * 5000}}, "999; expected an object's id"),
        ({"0": {"exp": "a dog", "obj_id": "9"}}, "its annotations hold no object 9"),
    ],
)
def test_wrong_expressions_name_file_and_field(data: Any, out: Path, expressions: dict[str, Any], message: str) -> None:
    records, text = data.outcome("ref-youtube-vos", out, root=youtube(expressions))
    assert records == []
    assert message in text
    assert not out.exists()


def test_masks_by_running_number_differ_from_eleven_expressions_on(tmp_path: Path, data: Any, out: Path) -> None:
    names = [str(i) for i in range(11)]
    root = youtube({name: {"exp": f"thing {name}"} for name in names})
    masks = {str(i): [data.mask_of(0, i, 5, i + 2)] * 3 for i in range(11)}
    path = tmp_path / "mask_dict.pkl"
    path.write_bytes(pickle.dumps(masks))
    for counted, order in (("unipixel", names), ("sa2va", sorted(names))):
        records, _ = data.outcome("ref-youtube-vos", out, root=root, mask_dict=path, counted=counted)
        found = {record["id"].rpartition("/")[2]: record["tasks"][0]["masks"] for record in records}
        assert found == {name: masks[str(number)] for number, name in enumerate(order)}
    path.write_bytes(pickle.dumps({"0": masks["0"][:2], "1": [None, 5, None]}))
    _, text = data.outcome("ref-youtube-vos", out, root=root, mask_dict=path, counted="unipixel")
    assert "mask_dict.pkl: 0: is '2 entries'; expected a list of RLE or null for each of the 3 frames" in text
    assert "mask_dict.pkl: 1[1]: is 5; expected COCO RLE" in text
    assert "mask_dict.pkl: 2: is missing; expected masks of expression 2 of video v1" in text


def mevis(masks: dict[str, Any] | None = None, frames: tuple[str, ...] = ("00000", "00001")) -> Path:
    unpack(
        download("mask", "mevis"),
        "mevis/train/meta_expressions.json",
        '"frames": ["00000", "00001"]',
        f'"frames": {json.dumps(frames)}',
    )
    if masks is not None:
        Path("mevis/train/mask_dict.json").write_text(json.dumps(masks))
    return Path("mevis")


def test_mevis(data: Any, out: Path) -> None:
    masks: dict[str, Any] = json.loads(download("mask", "mevis")["files"]["mevis/train/mask_dict.json"])
    (record, _), _ = data.outcome("mevis", out, root=mevis())
    assert "The two cats" in record["conversations"][0]["value"]
    assert record["conversations"][1]["value"].count("<mask>, <mask>") == 1
    assert [task["masks"] for task in record["tasks"]] == list(masks.values())
    assert data.records_of(out)[0].turns[1].text.count("<tracking>") == 2
    missing = "anno_id: is [10, 11]; expected ids of masks in mask_dict.json, which lacks [10]"
    for changed, message in (
        ({"11": masks["11"]}, missing),
        (masks | {"11": [masks["11"][0] | {"counts": "5"}, None]}, "mask_dict.json: 11[0]: is {"),
        (masks | {"11": masks["11"][:1]}, "is '1 entries'; expected a list of RLE or null for each of the 2 frames"),
    ):
        assert message in data.outcome("mevis", out.with_name("b.jsonl"), root=mevis(changed))[1]
    root = mevis(frames=("00001", "00000"))
    message = "frames: is ['00001', '00000']; expected frame names, ascending"
    assert message in data.outcome("mevis", out.with_name("c.jsonl"), root=root)[1]


SAV = "sav/sav_000/sav_000001_manual.json"


def sav(**changes: Any) -> Path:
    """Masklet 0, and 5, which shows nothing."""
    layout = download("mask", "sa-v")
    unpack(layout)
    Path(SAV).write_text(json.dumps(json.loads(layout["files"][SAV]) | changes))
    return Path("sav")


def test_sa_v_train(data: Any, out: Path) -> None:
    root = sav()
    (record,), text = data.outcome("sa-v", out, root=root)
    (first, _), _, (third, _) = json.loads(Path(SAV).read_text())["masklet"]
    assert record["id"] == "sa-v:sav_000001_manual/0"
    assert record["video"] == "sav/sav_000/sav_000001.mp4"  # below the records' folder
    given, target = record["tasks"]
    assert target["masks"] == [first, None, third]
    assert target["times"] == pytest.approx([0, 1 / 6, 2 / 6], abs=1e-6)
    assert given["box"] == [4 / 32, 0, 12 / 32, 1]
    assert "sa-v:sav_000001_manual/5: the object is in no annotated frame" in text
    out.unlink()
    for changes, message in (
        ({"masklet": [[first]] * 3}, "masklet[0]: is '1 masks'; expected one for each of the 2 masklets"),
        ({"video_height": 100}, "masklet[0][0]: is of size [24, 32], its image of [100, 32]"),
        ({"video_height": float("inf")}, "video_height: is inf; expected a whole number or a number"),
        ({"video_frame_count": "ten"}, "video_frame_count: is 'ten'; expected a whole number or a number"),
        ({"video_frame_count": 24}, "masklet: is '3 frames'; expected masks of every fourth of the 24 frames, 6"),
    ):
        assert message in data.outcome("sa-v", out, root=sav(**changes))[1]
    sav()
    (root / "sav_000/sav_000001.mp4").unlink()
    assert "sav_000001.mp4: no such file" in data.outcome("sa-v", out, root=root)[1]


def test_ref_sav(data: Any, out: Path) -> None:
    more = '"objects": {"7": {"formated": "x"}, "1": {"formatted": "x"}, '
    unpack(download("mask", "ref-sav"), "sam_v_final_v3.json", '"objects": {', more)
    (record,), text = data.outcome("ref-sav", out, source=Path("sam_v_final_v3.json"), videos=Path("sav"))
    (first, _), _, (third, _) = json.loads(Path(SAV).read_text())["masklet"]
    assert record["id"] == "ref-sav:sav_000001/0"
    assert "A red kite" in record["conversations"][0]["value"]
    assert record["tasks"][0]["masks"] == [first, None, third]
    assert "sav_000001.objects.7: is '7'; expected a column of the 2 masklets in sav_000001_manual.json" in text
    assert "sav_000001.objects.1.formated: is missing; expected a text" in text


def test_sa_v_val(tmp_path: Path, data: Any, out: Path) -> None:
    root = tmp_path / "sav_val"
    for k in range(9):
        data.picture(root / f"JPEGImages_24fps/v1/{k:05d}.jpg")
    for k in (0, 4, 8):
        data.labels(root / f"Annotations_6fps/v1/000/{k:05d}.png", {1: (1, 1, 9, 9)} if k else {})
        data.labels(root / f"Annotations_6fps/v1/001/{k:05d}.png", {1: (1, 1, 9, 9), 2: (12, 12, 15, 15)})
    (record,), text = data.outcome("sa-v", out, root=root)
    assert record["tasks"][1]["times"] == pytest.approx([0, 4 / 24, 8 / 24], abs=1e-6)
    assert record["tasks"][1]["masks"] == [None, data.mask_of(1, 1, 9, 9), data.mask_of(1, 1, 9, 9)]
    assert "001: holds the values [0, 1, 2], expected two" in text


def lasot(boxes: str | None = None, flags: str | None = None) -> Path:
    unpack(download("mask", "lasot"))
    for name, text in (("groundtruth.txt", boxes), ("full_occlusion.txt", flags)):
        if text is not None:
            Path("lasot/bear/bear-1", name).write_text(text)
    return Path("lasot")


def test_lasot(data: Any, out: Path) -> None:
    root = lasot()
    (record,), text = data.outcome("lasot", out, root=root)
    given, target = record["tasks"]
    box = [4 / 32, 6 / 24, 12 / 32, 18 / 24]
    assert given == {"head": "mask", "box": box, "time": 0.0}
    assert target["boxes"] == [box, None, [0, 6 / 24, 4 / 32, 1]]  # absent, clipped to the image
    assert "changed 1 x boxes that stuck out of their frame were clipped" in text
    assert target["times"] == pytest.approx([0, 1 / 30, 2 / 30], abs=1e-6)
    assert data.records_of(out)[0].turns[1].tasks[0]["boxes"][1] is None
    (root / "testing_set.txt").write_text("bear-1\n")
    assert len(data.outcome("lasot", out, root=root, split="test")[0]) == 1
    (root / "training_set.txt").write_text("bear-2\n")
    assert "gives no record" in data.outcome("lasot", out.with_name("b.jsonl"), root=root, split="train")[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": "4,6,8,12\n5,6,8\n4,6,8,30\n"}, "groundtruth.txt:2: is '5,6,8'; expected x,y,width,height in pix"),
        ({"boxes": "4,6,8,12\n5,6,8,9\n"}, "has 3 frames, 2 boxes in groundtruth.txt and 3 flags"),
        ({"flags": "0,1"}, "full_occlusion.txt has 2 flags, out_of_view.txt 3"),
        ({"flags": "0,0,0"}, "groundtruth.txt:2: is [0.0, 0.0, 0.0, 0.0]; expected a width and height above 0, where"),
        (
            {"boxes": "4,6,8,12\n0,0,0,0\n40,6,8,3\n"},
            "groundtruth.txt:3: is [40.0, 6.0, 8.0, 3.0]; expected a box with",
        ),
    ],
)
def test_wrong_boxes_are_named(data: Any, out: Path, changes: dict[str, str], message: str) -> None:
    assert message in data.outcome("lasot", out, root=lasot(**changes))[1]


def test_got10k(tmp_path: Path, data: Any, out: Path) -> None:
    root = tmp_path / "got"
    for split, boxes in (("train", 3), ("test", 1)):
        path = root / f"{split}/GOT-10k_{split}_1"
        for k in range(1, 4):
            data.picture(path / f"{k:08d}.jpg")
        (path / "groundtruth.txt").write_text("4.0,6.0,8.0,12.0\n" * boxes)
        (root / f"{split}/list.txt").write_text(f"{path.name}\nGOT-10k_000002\n")
        (path / "meta_info.ini").write_text("[METAINFO]\nurl: https://video?v=1%2\nanno_fps: 5Hz\n")
    (root / "train/GOT-10k_train_1/absence.label").write_text("0\n0\n1\n")
    (record,), text = data.outcome("got-10k", out, root=root)
    assert "GOT-10k_000002: no such folder" in text
    target = record["tasks"][1]
    assert target["boxes"] == [[4 / 32, 6 / 24, 12 / 32, 18 / 24]] * 2 + [None]
    assert target["times"] == pytest.approx([0, 0.2, 0.4])
    (record,), _ = data.outcome("got-10k", out, root=root, split="test")  # a prompt
    assert [turn["from"] for turn in record["conversations"]] == ["human"]
    assert record["tasks"] == [{"head": "mask", "box": target["boxes"][0], "time": 0.0}]
    (root / "train/GOT-10k_train_1/meta_info.ini").write_text("[METAINFO]\nanno_fps: fast\n")
    assert "meta_info.ini: cannot be understood" in data.outcome("got-10k", out.with_name("b"), root=root)[1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("davis", {}, "ImageSets/2017: no such folder; expected DAVIS 2017"),
        ("davis", {"made": True, "split": "tset"}, "tset.txt: no such file; splits are ['train']"),
        ("ref-davis", {"made": True}, "davis_text_annotations: no such folder"),
        ("ref-youtube-vos", {}, "meta_expressions.json: cannot be read"),
        ("youtube-vos", {}, "train: no such folder; expected a split of YouTube-VOS"),
        ("mevis", {"split": "valid"}, "valid: no such folder; expected a split of MeViS"),
        ("sa-v", {}, "holds neither *_manual.json"),
        ("lasot", {}, "holds no CATEGORY/SEQUENCE/groundtruth.txt"),
        ("got-10k", {}, "no such folder; expected a split of GOT-10k"),
        ("folder", {}, "images: no such folder; expected the images"),
        ("reason-seg", {}, "train: no such folder; expected a split of ReasonSeg"),
    ],
)
def test_another_layout_is_named(
    tmp_path: Path, davis: Any, data: Any, name: str, options: dict[str, Any], message: str
) -> None:
    root = tmp_path / "root"
    davis("root") if options.pop("made", False) else root.mkdir()
    assert message in data.outcome(name, tmp_path / "out" / "records.jsonl", root=root, **options)[1]
    assert not list(tmp_path.glob("out/*records*"))
    assert "nowhere: no such folder" in data.outcome(name, tmp_path / "b.jsonl", root=tmp_path / "nowhere")[1]
