"""Small sets of videos, laid out as the published ones, through the converter and the core's reader of records."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tpo_plugin.data import VideoOptions, read_sample


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "records.jsonl"


@pytest.fixture
def davis(tmp_path: Path, data: Any) -> Callable[[str], Path]:
    """Sequence "bear": object 1 moves, object 2 appears in frame 1, 255 is void; "cat" has a map of another size."""

    def make(name: str = "DAVIS") -> Path:
        root = tmp_path / name
        (root / "ImageSets/2017").mkdir(parents=True)
        (root / "ImageSets/2017/train.txt").write_text("bear\ncat\n")
        for k in range(3):
            data.picture(root / f"JPEGImages/480p/bear/{k:05d}.jpg", 40 * k)
            objects = {1: (2, 2 + k, 8, 10 + k), 255: (0, 0, 1, 1)} | ({2: (12, 4, 20, 12)} if k else {})
            data.labels(root / f"Annotations/480p/bear/{k:05d}.png", objects)
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


def youtube(root: Path, data: Any, expressions: dict[str, Any]) -> Path:
    for number in (5, 10, 20):
        data.picture(root / f"train/JPEGImages/v1/{number:05d}.jpg")
        data.labels(root / f"train/Annotations/v1/{number:05d}.png", {1: (1, 1, 9, 9), 3: (10, 10, 20, 20)})
    path = root / "meta_expressions/train/meta_expressions.json"
    path.parent.mkdir(parents=True)
    entry = {"expressions": expressions, "frames": ["00010", "00005", "00020"]}
    path.write_text(json.dumps({"videos": {"v1": entry}}))
    return root


def test_youtube_vos(tmp_path: Path, data: Any, out: Path) -> None:
    root = youtube(tmp_path / "yt", data, {"0": {"exp": "a dog", "obj_id": "3"}, "1": {"exp": "x", "obj_id": "2"}})
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
        ({"0": {"exp": "a dog", "obj_id": "9"}}, "its annotations hold no object 9"),
    ],
)
def test_wrong_expressions_name_file_and_field(
    tmp_path: Path, data: Any, out: Path, expressions: dict[str, Any], message: str
) -> None:
    records, text = data.outcome("ref-youtube-vos", out, root=youtube(tmp_path / "yt", data, expressions))
    assert records == []
    assert message in text
    assert not out.exists()


def test_masks_by_running_number_differ_from_eleven_expressions_on(tmp_path: Path, data: Any, out: Path) -> None:
    names = [str(i) for i in range(11)]
    root = youtube(tmp_path / "yt", data, {name: {"exp": f"thing {name}"} for name in names})
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


def mevis(root: Path, data: Any, masks: dict[str, Any], frames: tuple[str, ...] = ("00000", "00001")) -> Path:
    for k in range(2):
        data.picture(root / f"train/JPEGImages/v1/{k:05d}.jpg")
    expressions = {
        "0": {"exp": "The two cats.", "obj_id": [0, 1], "anno_id": [10, 11]},
        "1": {"exp": "a ghost", "obj_id": [2], "anno_id": [12]},
    }
    meta = {"videos": {"v1": {"expressions": expressions, "frames": list(frames), "vid_id": 0}}}
    (root / "train/meta_expressions.json").write_text(json.dumps(meta))
    (root / "train/mask_dict.json").write_text(json.dumps(masks))
    return root


def test_mevis(tmp_path: Path, data: Any, out: Path) -> None:
    m = data.mask_of
    masks: dict[str, Any] = {"10": [m(1, 1, 5, 5), None], "11": [m(8, 8, 20, 20), m(8, 9, 20, 21)]}
    (record,), text = data.outcome("mevis", out, root=mevis(tmp_path / "mevis", data, masks))
    assert "anno_id: is [12]; expected ids of masks in mask_dict.json, which lacks [12]" in text
    assert "The two cats" in record["conversations"][0]["value"]
    assert record["conversations"][1]["value"].count("<mask>, <mask>") == 1
    assert [task["masks"] for task in record["tasks"]] == list(masks.values())
    assert data.records_of(out)[0].turns[1].text.count("<tracking>") == 2
    out.unlink()
    for wrong, message in (
        ([m(8, 8, 20, 20) | {"counts": "5"}, None], "mask_dict.json: 11[0]: is {"),
        ([m(8, 8, 20, 20)], "11: is '1 entries'; expected a list of RLE or null for each of the 2 frames"),
    ):
        root = mevis(tmp_path / "mevis", data, masks | {"11": wrong})
        assert message in data.outcome("mevis", out, root=root)[1]
    root = mevis(tmp_path / "mevis", data, masks, ("00001", "00000"))
    assert "frames: is ['00001', '00000']; expected frame names, ascending" in data.outcome("mevis", out, root=root)[1]


def sav(root: Path, data: Any, **changes: Any) -> Path:
    folder = root / "sav_000"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sav_000001.mp4").write_bytes(b"a video")
    empty, small = data.mask_of(0, 0, 0, 0), data.mask_of(1, 2, 3, 4)
    content = {
        "video_id": "sav_000001",
        "video_height": float(data.size[0]),
        "video_width": float(data.size[1]),
        "video_frame_count": 10.0,
        "masklet": [[small, empty], [empty, empty], [small, empty]],
        "masklet_id": [0, 5],
    }
    (folder / "sav_000001_manual.json").write_text(json.dumps(content | changes))
    return root


def test_sa_v_train(tmp_path: Path, data: Any, out: Path) -> None:
    root, small = sav(tmp_path / "sav", data), data.mask_of(1, 2, 3, 4)
    (record,), text = data.outcome("sa-v", out, root=root)
    assert record["id"] == "sa-v:sav_000001_manual/0"
    assert record["video"] == "sav/sav_000/sav_000001.mp4"  # below the records' folder
    given, target = record["tasks"]
    assert target["masks"] == [small, None, small]
    assert target["times"] == pytest.approx([0, 1 / 6, 2 / 6], abs=1e-6)
    assert given["box"] == [2 / 32, 1 / 24, 4 / 32, 3 / 24]
    assert "sa-v:sav_000001_manual/5: the object is in no annotated frame" in text
    out.unlink()
    for changes, message in (
        ({"masklet": [[small]] * 3}, "masklet[0]: is '1 masks'; expected one for each of the 2 masklets"),
        ({"video_height": 100}, "masklet[0][0]: is of size [24, 32], its image of [100, 32]"),
        ({"video_frame_count": 24}, "masklet: is '3 frames'; expected masks of every fourth of the 24 frames, 6"),
    ):
        assert message in data.outcome("sa-v", out, root=sav(root, data, **changes))[1]
    sav(root, data)
    (root / "sav_000/sav_000001.mp4").unlink()
    assert "sav_000001.mp4: no such file" in data.outcome("sa-v", out, root=root)[1]


def test_ref_sav(tmp_path: Path, data: Any, out: Path) -> None:
    root = sav(tmp_path / "sav", data)
    paths = {"video_path": "sav_000/sav_000001.mp4", "anno_path": "sav_000/sav_000001_manual.json"}
    objects = {"0": {"formated": "A red kite."}, "7": {"formated": "x"}, "1": {"formatted": "x"}}
    source = tmp_path / "ref.json"
    source.write_text(json.dumps({"sav_000001": {**paths, "objects": objects}}))
    (record,), text = data.outcome("ref-sav", out, source=source, videos=root)
    assert record["id"] == "ref-sav:sav_000001/0"
    assert "A red kite" in record["conversations"][0]["value"]
    assert record["tasks"][0]["masks"] == [data.mask_of(1, 2, 3, 4), None, data.mask_of(1, 2, 3, 4)]
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


def lasot(root: Path, data: Any, boxes: str = "4,6,8,12\n0,0,0,0\n-4,6,8,30\n", flags: str = "0,1,0") -> Path:
    path = root / "bear/bear-1"
    for k in range(1, 4):
        data.picture(path / f"img/{k:08d}.jpg")
    (path / "groundtruth.txt").write_text(boxes)
    (path / "full_occlusion.txt").write_text(flags)
    (path / "out_of_view.txt").write_text("0,0,0\n")
    return root


def test_lasot(tmp_path: Path, data: Any, out: Path) -> None:
    root = lasot(tmp_path / "lasot", data)
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
def test_wrong_boxes_are_named(tmp_path: Path, data: Any, out: Path, changes: dict[str, str], message: str) -> None:
    assert message in data.outcome("lasot", out, root=lasot(tmp_path / "a", data, **changes))[1]


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
