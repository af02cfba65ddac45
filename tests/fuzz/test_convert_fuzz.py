"""Sources of `tpo convert`: files of the small downloads, of each family of formats one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from downloads import converter, download, unpack
from fuzzing import files, fuzz, texts

from tpo_plugin import TPOError, registry

FILES = [
    ("region", "coco", "instances.json"),
    ("region", "swift", "rows.jsonl"),
    ("region", "qwen3-vl", "rows.jsonl"),
    ("region", "yolo", "data.yaml"),
    ("region", "yolo", "labels/train/a.txt"),
    ("region", "refcoco-lmms", "rows.jsonl"),
    ("region", "voc", "Annotations/2007_000027.xml"),
    ("temporal", "charades-sta", "charades_sta_train.txt"),
    ("temporal", "qvhighlights", "highlight_train_release.jsonl"),
    ("temporal", "activitynet-captions", "train.json"),
    ("temporal", "didemo", "train_data.json"),
    ("temporal", "youcook2", "youcookii_annotations_trainval.json"),
    ("temporal", "videochat2-it", "train.json"),
    ("mask", "sa-v", "sav/sav_000/sav_000001_manual.json"),
    ("mask", "mevis", "mevis/train/meta_expressions.json"),
    ("mask", "mevis", "mevis/train/mask_dict.json"),
    ("mask", "got-10k", "got/train/list.txt"),
    ("mask", "semantic", "classes.txt"),
    ("mask", "folder", "mine/objects.json"),
]


@pytest.mark.parametrize(("head", "format", "file"), FILES)
def test_a_file_of_a_download(
    head: str, format: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if head not in registry().heads:
        pytest.skip(f"needs the head {head}")
    monkeypatch.chdir(tmp_path)
    given = download(head, format)
    unpack(given)
    run, text = converter(given), given["files"][file]
    left_out = run().num_left_out

    def read(path: Path) -> None:
        report = run()
        if report.num_left_out > left_out:
            raise TPOError(str(report))

    good = files(json.loads(text)) if file.endswith((".json", ".jsonl")) else texts(text.encode())
    fuzz(good, Path(file), read, tries=40)
