"""Files that the mask head reads: records with RLE and PNGs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from fuzzing import Files, files, fuzz, texts, values
from PIL import Image

from tpo_plugin.data import RecordFormat, Records

pytest.importorskip("tpo_head_mask")

from tpo_head_mask import rle
from tpo_head_mask.masks import read_mask

MASK = np.zeros((6, 8), dtype=bool)
MASK[2:4, 1:5] = True
LISTED = {"size": [6, 8], "counts": [8, 2, 4, 2, 4, 2, 4, 2, 20]}
RECORD = {
    "id": "1",
    "video": "a.mp4",
    "conversations": [
        {"from": "human", "value": "<video>\nFollow <mask>."},
        {"from": "gpt", "value": "Here: <mask>."},
    ],
    "tasks": [
        {"head": "mask", "box": [0.1, 0.2, 0.5, 0.6], "time": 0.5},
        {
            "head": "mask",
            "masks": [rle.encode(MASK), None, LISTED, {"png": "a.png", "id": 3}],
            "times": [0, 0.5, 1, 2.0],
        },
    ],
}


def test_records(tmp_path: Path) -> None:
    format = RecordFormat.of_heads(["mask"])

    def read(path: Path) -> None:
        for record in Records(path, format):
            for task in record.turns[-1].tasks:
                format.codecs["mask"].collate_targets([task])

    fuzz(files(RECORD), tmp_path / "a.jsonl", read, tries=150)


@pytest.mark.parametrize("good", [rle.encode(MASK), LISTED], ids=["compressed", "listed"])
def test_rle(tmp_path: Path, good: rle.RLE) -> None:
    def read(path: Path) -> None:
        given = json.loads(path.read_bytes())
        rle.decode(given["mask"] if isinstance(given, dict) and "mask" in given else given)

    changed = files({"mask": good})
    by_value = values({"mask": good}).map(lambda value: json.dumps(value).encode())
    fuzz(Files(changed.good, by_value), tmp_path / "rle.json", read, tries=150)


def _png(mode: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 2, (24, 32), dtype=np.uint8) * 3
    image = Image.fromarray(pixels.astype(np.uint16)) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    image.save(file, "png")
    return file.getvalue()


def test_pngs(tmp_path: Path) -> None:
    good = texts(*map(_png, ("P", "L", "1", "I;16")))
    fuzz(good, tmp_path / "a.png", lambda path: read_mask(str(path)), tries=200)
