from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tpo_head_mask import rle
from tpo_head_mask.inputs import FrameLoader
from tpo_head_mask.masks import box_of, check_task, read_ids, read_mask, resolve

import tpo_plugin as tpo
from tpo_plugin import MediaError, VideoClip
from tpo_plugin.data import Record, Sample, Turn

MASK = np.zeros((6, 8), dtype=bool)
MASK[2:4, 1:5] = True
RLE = rle.encode(MASK)
EMPTY = rle.encode(np.zeros((6, 8)))
BOX = [0.125, 0.25, 0.625, 0.75]


def test_tasks_that_can_be_used() -> None:
    for task in (
        {"masks": [RLE]},
        {"masks": ["a.png"]},
        {"masks": [{"png": "a.png", "id": 2}]},
        {"masks": [RLE, None, EMPTY, "d.png"], "times": [0, 0.5, 1.0, 1.5]},
        {"boxes": [BOX, None], "times": [0.0, 1.0]},
        {"box": BOX, "time": 3},
        {"box": BOX},
    ):
        check_task({"head": "mask", **task})


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({}, r"masks is missing; expected one of 'masks', 'boxes' \(to predict\) and 'box'"),
        ({"masks": [RLE], "box": BOX}, "box is given beside masks; expected one of"),
        ({"masks": RLE}, r"masks is \{.*; expected a list"),
        ({"masks": []}, r"masks is \[\]; expected a list with one entry for each annotated frame"),
        ({"masks": [5]}, r"masks\[0\] is 5; expected COCO RLE, the path of a PNG, or null"),
        ({"masks": [""]}, r"masks\[0\] is ''; expected COCO RLE"),
        ({"masks": [{"size": [6, 8], "counts": "5"}]}, r"masks\[0\]: counts covers 5 pixels"),
        ({"masks": [{"png": "a.png", "id": 0}]}, r"masks\[0\] is .*; expected .*object id above 0"),
        ({"masks": [{"png": "a.png"}]}, r"masks\[0\] is .*; expected .*object id above 0"),
        ({"masks": [None]}, "masks holds null alone; expected the object in at least one frame"),
        ({"masks": [EMPTY]}, "masks has no foreground pixel in any frame"),
        ({"masks": [EMPTY, None], "times": [0, 1]}, "masks has no foreground pixel in any frame"),
        (
            {"masks": [RLE, rle.encode(MASK[:4])], "times": [0, 1]},
            r"masks\[1\]: size is \[4, 8\], that of masks\[0\] is \[6, 8\]; expected one size",
        ),
        ({"masks": [RLE, RLE]}, "times is missing; expected the second of each of the 2 masks"),
        ({"boxes": [BOX]}, "times is missing"),
        ({"masks": [RLE], "times": [0, 1]}, "times has 2 entries, masks has 1"),
        ({"masks": [RLE], "times": 1}, "times has 1 entries|times has 1"),
        ({"masks": [RLE], "times": [-1]}, r"times\[0\] is -1; expected seconds"),
        ({"masks": [RLE, RLE], "times": [1, 1]}, r"times\[1\] is 1 after 1; expected ascending seconds"),
        ({"boxes": [[0, 0, 1]], "times": [0]}, r"boxes\[0\] is \[0, 0, 1\]; expected four numbers"),
        ({"box": [0.5, 0.5, 1.5, 0.9]}, r"box: x2 is 1.5; expected a number from 0 to 1"),
        ({"box": [0.5, 0.5, 0.2, 0.9]}, r"box: x1 is 0.5 and x2 is 0.2; expected x1 < x2"),
        ({"box": [0.1, 0.1, float("nan"), 0.9]}, "box: x2 is nan; expected a number from 0 to 1"),
        ({"box": BOX, "time": "now"}, "time is 'now'; expected seconds"),
    ],
)
def test_wrong_tasks_name_the_field(task: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^(?:{message})"):
        check_task({"head": "mask", **task})


def test_paths_start_at_the_records_folder() -> None:
    task = {"head": "mask", "masks": ["a.png", None, RLE, {"png": "b.png", "id": 2}], "times": [0, 1, 2, 3]}
    resolved = resolve(task, Path("/data"))
    assert resolved["masks"] == ["/data/a.png", None, RLE, {"png": "/data/b.png", "id": 2}]
    assert task["masks"][0] == "a.png"
    assert resolve({"box": BOX}, Path("/data")) == {"box": BOX}


def save(path: Path, values: np.ndarray, mode: str = "P") -> str:
    """A palette image, or one of two values."""
    image = Image.fromarray(values.astype(bool) if mode == "1" else values.astype(np.uint8))
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [0] * 759)
    image.save(path)
    return str(path)


@pytest.mark.parametrize("mode", ["P", "1"])
def test_masks_of_files(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "a.png", MASK, mode)
    assert (read_mask(path) == MASK).all()
    assert (read_mask(path, (6, 8)) == MASK).all()
    assert (read_mask(RLE, (6, 8)) == MASK).all()


def test_one_object_of_a_map(tmp_path: Path) -> None:
    ids = np.where(MASK, 2, 0)
    ids[0, 0] = 1
    path = save(tmp_path / "a.png", ids)
    assert (read_mask({"png": path, "id": 2}) == MASK).all()
    assert read_ids(path).tolist() == ids.tolist()
    with pytest.raises(tpo.MediaError, match=r"a\.png: holds no object 7; its object ids are \[1, 2\]"):
        read_mask({"png": path, "id": 7})
    with pytest.raises(
        tpo.MediaError, match=r"a\.png: holds the values \[0, 1, 2\]; expected background and one object"
    ):
        read_mask(path)


def test_an_empty_file_is_an_empty_mask(tmp_path: Path) -> None:
    assert not read_mask(save(tmp_path / "a.png", np.zeros((6, 8)))).any()


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", MASK)
    with pytest.raises(tpo.MediaError, match=r"a\.png: is 8 x 6 pixels, its image 640 x 480; expected the same size"):
        read_mask(path, (480, 640))
    with pytest.raises(tpo.MediaError, match="the mask: is 8 x 6 pixels, its image 6 x 8"):
        read_mask(RLE, (8, 6))
    with pytest.raises(tpo.MediaError, match=r"b\.png: no such file"):
        read_mask(str(tmp_path / "b.png"))
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(tpo.MediaError, match=r"b\.png: cannot be read as a mask: cannot identify"):
        read_mask(str(tmp_path / "b.png"))
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise[..., 0]).save(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:1000])
    with pytest.raises(tpo.MediaError, match=r"b\.png: cannot be read as a mask: .*truncated"):
        read_mask(str(tmp_path / "b.png"))
    Image.fromarray(noise).save(tmp_path / "c.png")
    with pytest.raises(tpo.MediaError, match=r"c\.png: is an image of mode RGB, in colours"):
        read_mask(str(tmp_path / "c.png"))


def test_the_box_around_a_mask() -> None:
    assert box_of(MASK) == [1 / 8, 2 / 6, 5 / 8, 4 / 6]
    assert box_of(np.ones((3, 4))) == [0, 0, 1, 1]
    assert box_of(np.zeros((3, 4))) is None


@pytest.mark.parametrize("tag", ["<image>", "<video>"])
def test_a_mask_beside_several_media_is_refused(tag: str, tmp_path: Path) -> None:
    """It does not say whose it is: the first one's pixels were learned from in silence."""
    task = {"head": "mask", "masks": [{"size": [8, 8], "counts": [0, 64]}]}
    turns = (Turn("user", f"<image>{tag}Outline the thing in the second one."), Turn("assistant", "x", (task,)))
    image, clip = Image.new("RGB", (8, 8)), VideoClip(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2.0), 2.0)
    names = [tmp_path / "a", tmp_path / "b"]
    second = tag == "<video>"
    record = Record("1", "f:1", turns, images=tuple(names[: 2 - second]), videos=tuple(names[2 - second :]))
    sample = Sample(record, (image,) * (2 - second), (clip,) * second)
    with pytest.raises(MediaError, match=r"f:1: has a mask and \d picture\(s\) and \d video\(s\), of which the mask"):
        FrameLoader(16, 1, "mask", None)([sample])
