"""The splits of the ablation: of a version, by seed, the same bytes everywhere.

Train, validation and test share no scene, and train shares no photograph with the two others. What is chosen (sizes,
rates) is chosen on validation; test is what tables show.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tpo_shapes.baselines import bare_record, moment_record, of_heads, text_record
from tpo_shapes.dataset import make_dataset, write_records
from tpo_shapes.recipe import SHARDS, Size

VERSION = 1
"""Another one for whatever changes a checksum."""
CHECKSUMS = {
    "train-0": "e03462ef037b9aa26b2274753bac945029e9580a3282dabd88b1253bde1f275a",
    "train-1": "e9c8d62f5b1be0b40b127ae162bcbf085da1d36e9a29ffe8c1e46e3627aab978",
    "validation": "453b8f3fa1c757fc32e85743a6f90e59ac44872c5a4ae3652ee929a032739001",
    "test": "f5b9de4a91001ee734e62ac4aab24108c8b479415d7831412ad834150e6941ad",
}
"""`checksum` of each part of seed 0, in the size of the ablation."""
VALIDATION, TEST = "validation", "test"
FIRST_SEEDS = {**{shard: 100 + 10 * index for index, shard in enumerate(SHARDS)}, VALIDATION: 600, TEST: 700}
"""Of a part's pictures in seed 0; each seed adds 1000, and clips have the number after. The demo's are others."""
KINDS = ("chat", "tasks", "clip_chat", "clip_tasks")
VIEWS: dict[str, Callable[[dict], dict | None]] = {
    "region": partial(of_heads, heads=("region",)),
    "temporal": partial(of_heads, heads=("temporal",)),
    "mask": partial(of_heads, heads=("mask",)),
    "region-mask": partial(of_heads, heads=("region", "mask")),
    "region-temporal": partial(of_heads, heads=("region", "temporal")),
    "text": text_record,
    "moment": moment_record,
    "bare": bare_record,
}
"""How a training may take the records of tasks, by what its files end in."""
FIRST_HALF = "first"
"""What the files of the first half of a shard's records end in."""


def make_splits(directory: Path, size: Size, seed: int) -> None:
    """Writes the parts that are not there yet, each in its folder, with the training records in each of `VIEWS`."""
    for name in FIRST_SEEDS:
        root = directory / name
        if not (root / "done").is_file():
            _make_part(root, name, size, seed)
            (root / "done").touch()


def _make_part(root: Path, name: str, size: Size, seed: int) -> None:
    first = FIRST_SEEDS[name] + 1000 * seed
    if name not in SHARDS:
        make_dataset(root, "heldout", size.heldout_scenes, first, size.heldout_clips)
        return
    share = len(SHARDS)
    files = make_dataset(root, "train", size.num_scenes // share, first, size.num_clips // share)
    for kind, file in files.items():
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        write_records(view_of(file, FIRST_HALF), records[: len(records) // 2])
        for view, change in VIEWS.items() if kind.endswith("tasks") else ():
            write_records(view_of(file, view), filter(None, map(change, records)))


def view_of(file: Path, view: str) -> Path:
    """Where a view of a file of records lies."""
    return file.with_name(f"{file.stem}_{view}.jsonl")


def checksum(root: Path) -> str:
    """SHA-256 of what a part says and shows: its records, and its pixels as they were drawn.

    Not of the pictures' and clips' files: other releases of the encoders may write other bytes.
    """
    digest = hashlib.sha256()
    for name in (*(f"{kind}.jsonl" for kind in KINDS), "images.sha256", "clips.sha256"):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()
