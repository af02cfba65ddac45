"""Shards, tables and plain files that hold the same records and pictures, for tests."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(number: int, size: int = 16) -> bytes:
    """A PNG of one colour, another for each number."""
    file = io.BytesIO()
    colour = (number % 251, 3 * number % 251, 7)
    Image.fromarray(np.full((size, size, 3), colour, np.uint8)).save(file, "PNG")
    return file.getvalue()


def chat(name: str, **fields: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nwhere is red"}, {"from": "gpt", "value": "it is the circle"}]
    return {"id": name, "conversations": turns, **fields}


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_shards(folder: Path, records: Sequence[dict[str, Any]], pictures: Sequence[bytes], per_shard: int) -> str:
    """The pattern of the shards; each sample is KEY.json and KEY.png."""
    for shard, start in enumerate(range(0, len(records), per_shard)):
        members = []
        for number in range(start, min(start + per_shard, len(records))):
            members += [
                (f"{number:04}.json", json.dumps(records[number]).encode()),
                (f"{number:04}.png", pictures[number]),
            ]
        write_tar(folder / f"{shard:03}.tar", members)
    return f"{folder}/{{000..{shard:03}}}.tar"


def write_lines(folder: Path, records: Sequence[dict[str, Any]], pictures: Sequence[bytes]) -> str:
    """The path of JSON Lines, beside which the pictures lie."""
    lines = []
    for number, (record, data) in enumerate(zip(records, pictures, strict=True)):
        (folder / f"{number:04}.png").write_bytes(data)
        lines.append(json.dumps(record | {"image": f"{number:04}.png"}) + "\n")
    (folder / "records.jsonl").write_text("".join(lines))
    return str(folder / "records.jsonl")


def as_dataset(records: Sequence[dict[str, Any]], pictures: Sequence[bytes]) -> Any:
    """A `datasets.Dataset` with the pictures in a column of the feature `Image`."""
    import datasets

    rows = [record | {"image": {"bytes": data, "path": None}} for record, data in zip(records, pictures, strict=True)]
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
