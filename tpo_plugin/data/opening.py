"""Sources of records by what is named: JSON, tables of `datasets`, WebDataset's shards. No torch in here."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from tpo_plugin.data.columns import RecordColumns
from tpo_plugin.data.shards import RecordShards
from tpo_plugin.data.sources import RecordFile
from tpo_plugin.data.storage import is_url
from tpo_plugin.errors import RecordError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SHARD = re.compile(r"\.(tar|tgz)(\.gz|\.zst)?$", re.IGNORECASE)
_TABLE = re.compile(r"\.(parquet|arrow)$", re.IGNORECASE)


class RecordSource(Protocol):
    """Values, each of which should be a record, read by index."""

    files: list[Path]
    """Those of the disk that hold them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any:
        """The value. Raises `RecordError`."""

    def file_of(self, index: int) -> str:
        """The file that a record stands in, as it was named."""

    def place(self, index: int) -> tuple[int | None, str]:
        """Its line there, from 1, and what stands before its fields in a message, as "[index]"."""


def open_source(name: str | Path) -> RecordSource:
    """The records that a name stands for; only their places are read.

    A name with "*", "?" or "[...]" is a pattern of files, one with "{000..099}" a range of files or URLs, in that
    order: tar files are WebDataset's shards, .parquet and .arrow files tables. A folder is what
    `Dataset.save_to_disk` wrote. Anything else is a file of JSON (`RecordFile`). Raises `RecordError`.
    """
    name = str(name)
    names = _files_named(name)
    if all(map(_SHARD.search, names)):
        return RecordShards(names)
    if all(map(_TABLE.search, names)):
        return RecordColumns.of_files(names)
    if len(names) > 1 or names[0] != name:
        raise RecordError(
            f"names {len(names)} file(s), as {names[0]}; expected .tar, .parquet or .arrow files alone: name "
            "each file of JSON as a source of its own",
            file=name,
        )
    if os.path.isfile(os.path.join(name, "state.json")):
        return RecordColumns.saved(name)
    splits = sorted(Path(file).parent.name for file in glob.glob(os.path.join(glob.escape(name), "*", "state.json")))
    if splits:
        raise RecordError(f"holds several datasets ({', '.join(splits)}); name one, as {name}/{splits[0]}", file=name)
    return RecordFile(name)


def _files_named(name: str) -> list[str]:
    """The names that a pattern or a range stands for; without either the name itself."""
    if os.path.exists(name):
        return [name]
    names = list(_ranged(name))
    if not is_url(name) and re.search(r"[*?\[]", name):
        found = [sorted(glob.glob(pattern)) for pattern in names]
        missing = [pattern for pattern, files in zip(names, found, strict=True) if not files]
        if missing:
            raise RecordError("no file has such a name", file=missing[0])
        names = [file for files in found for file in files]
    return names


def _ranged(name: str) -> Iterator[str]:
    match = _RANGE.search(name)
    if match is None:
        yield name
        return
    first, last = match.groups()
    if int(first) > int(last):
        raise RecordError(f"has the range {match[0]}, which is empty", file=name)
    for number in range(int(first), int(last) + 1):
        yield from _ranged(f"{name[: match.start()]}{number:0{len(first)}}{name[match.end() :]}")


def as_source(data: Sequence[Any]) -> RecordSource | Sequence[Any]:
    """The rows of a `datasets.Dataset` with their media undecoded; any other sequence as it is.

    Raises `RecordError` for what has no length, as a stream of `datasets`.
    """
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise RecordError(
            f"{type(data).__name__} is a stream, in which no run could go on where it stopped; expected what has a "
            "length and an index: fetch its Parquet files or shards and name them, or save it (Dataset.save_to_disk)",
            file="records",
        )
    is_dataset = hasattr(data, "with_format") and hasattr(data, "features")
    return RecordColumns(data, "records") if is_dataset else data
