"""Sources of `tpo convert`, as they are published: the files of each family of formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from fuzzing import Files, files, fuzz, texts
from PIL import Image

from tpo_plugin.convert import convert, formats

SIZE = (8, 6)
"""Width and height of the picture."""
MASK = {"size": [6, 8], "counts": [8, 2, 4, 2, 4, 2, 4, 2, 20]}
MESSAGES = [{"role": "user", "content": "<image>Find the <ref-object>"}, {"role": "assistant", "content": "<bbox>"}]
BBOX_2D = '[{"bbox_2d": [156, 208, 312, 417], "label": "dog"}]'
SOURCES: dict[str, dict[str, Any]] = {
    "coco": {
        "images": [{"id": 9, "file_name": "a.png", "width": 8, "height": 6}],
        "annotations": [{"id": 1, "image_id": 9, "category_id": 18, "bbox": [1, 1, 3, 4], "area": 12, "iscrowd": 0}],
        "categories": [{"id": 18, "name": "dog"}],
    },
    "swift": {
        "messages": MESSAGES,
        "images": ["a.png"],
        "objects": {"ref": ["sheep"], "bbox": [[1, 1, 4, 5]], "bbox_type": "real"},
    },
    "qwen3-vl": {
        "messages": [{"role": "user", "content": "<image>Where?"}, {"role": "assistant", "content": BBOX_2D}],
        "images": ["a.png"],
    },
    "qvhighlights": {
        "qid": 1,
        "query": "it",
        "vid": "v",
        "duration": 8,
        "relevant_windows": [[0, 4]],
        "relevant_clip_ids": [0, 1],
        "saliency_scores": [[1, 2, 3], [4, 4, 0]],
    },
    "activitynet-captions": {"v": {"duration": 9.5, "timestamps": [[0, 1.5], [2, 3]], "sentences": ["a", "b"]}},
    "didemo": [{"annotation_id": 1, "video": "v.mp4", "description": "it", "times": [[0, 0], [1, 2]]}],  # type: ignore[dict-item]
    "youcook2": {
        "database": {
            "v": {"subset": "training", "duration": 9.5, "annotations": [{"id": 0, "segment": [1, 3], "sentence": "a"}]}
        }
    },
}


def converted(name: str, given: str, **options: Any) -> Any:
    """What reads a source, a file or a folder, which the format has as the field `given`."""
    make: Any = formats()[name].format_class()

    def read(path: Path) -> None:
        convert(make(**{given: path}, **options), path.parent / "out.jsonl")

    return read


@pytest.fixture
def media(tmp_path: Path) -> Path:
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    with av.open(str(tmp_path / "v.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for _ in range(10):
            file.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        file.mux(stream.encode(None))
    (tmp_path / "w.mp4").write_bytes((tmp_path / "v.mp4").read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", list(SOURCES))
def test_documents(media: Path, name: str) -> None:
    kind = "videos" if name in ("qvhighlights", "activitynet-captions", "didemo", "youcook2") else "pictures"
    options: dict[str, Any] = {kind: media} | ({"subset": "training"} if name == "youcook2" else {})
    fuzz(files(SOURCES[name]), media / "a.json", converted(name, "source", **options), tries=40)


def test_lines(media: Path) -> None:
    read = converted("charades-sta", "source", videos=media)
    fuzz(texts(b"v 0.0 1.5##it\nv 2 3##that\n"), media / "a.txt", read, tries=40)


@pytest.mark.parametrize("name", ["meta_expressions.json", "mask_dict.json"])
def test_a_folder_of_videos(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "train"
    (folder / "JPEGImages" / "v").mkdir(parents=True)
    for frame in ("0", "1"):
        Image.new("RGB", SIZE).save(folder / "JPEGImages" / "v" / f"{frame}.jpg")
    expressions = {"0": {"exp": "it", "obj_id": [1], "anno_id": [7]}}
    good = {
        "meta_expressions.json": {"videos": {"v": {"frames": ["0", "1"], "expressions": expressions}}},
        "mask_dict.json": {"7": [MASK, None]},
    }
    for file, value in good.items():
        (folder / file).write_text(json.dumps(value))
    read = converted("mevis", "root")
    fuzz(files(good[name]), folder / name, lambda path: read(tmp_path), tries=40)


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    Image.new("RGB", SIZE).save(tmp_path / "images" / "a.jpg")
    pixels = np.zeros((6, 8), np.uint8)
    pixels[2:4, 1:5] = 1
    Image.fromarray(pixels).save(tmp_path / "masks" / "a.png")
    read = converted("folder", "root")
    fuzz(files({"1": "the dog", "2": None}), tmp_path / "objects.json", lambda path: read(path.parent), tries=40)


def test_pictures_names_and_boxes(tmp_path: Path) -> None:
    """YOLO: a text file beside each picture. Pascal VOC: XML."""
    for part in ("images", "labels", "JPEGImages", "Annotations"):
        (tmp_path / part).mkdir()
    for part in ("images/a.png", "JPEGImages/a.png"):
        Image.new("RGB", SIZE).save(tmp_path / part)
    (tmp_path / "data.yaml").write_text("names: [dog, cat]\n")
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    size = "<size><width>8</width><height>6</height><depth>3</depth></size>"
    xml = f"<annotation><filename>a.png</filename>{size}<object><name>dog</name>{box}</object></annotation>"
    yolo, voc = (
        converted("yolo", "source", pictures=tmp_path / "images"),
        converted("voc", "source", pictures=tmp_path / "JPEGImages"),
    )
    line = texts(b"0 0.5 0.5 0.2 0.4\n1 0.3 0.3 0.2 0.2\n")
    fuzz(line, tmp_path / "labels" / "a.txt", lambda path: yolo(tmp_path / "data.yaml"), tries=40)
    (tmp_path / "labels" / "a.txt").write_bytes(line.good[0])
    fuzz(texts(b"names: [dog, cat]\n"), tmp_path / "data.yaml", yolo, tries=40)
    fuzz(
        Files((xml.encode(),), texts(xml.encode()).strategy),
        tmp_path / "Annotations" / "a.xml",
        lambda path: voc(path.parent),
        tries=40,
    )
