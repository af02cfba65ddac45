"""WebDataset's shards as records: in a tar, files that follow each other and share a name up to its first dot are one
sample, as `0001.json`, `0001.jpg`. No torch in here.

The shards are files of this disk, each read through once, for the place of every sample; from then on any sample is
read by itself. So an epoch's order, its share of each rank and worker, and where a run goes on are those of any other
source of records.
"""

from __future__ import annotations

import re
import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from tpo_plugin.data.packed import PICTURES, VIDEOS, Packed
from tpo_plugin.data.storage import check_end_mark, local_path
from tpo_plugin.errors import RecordError
from tpo_plugin.json_file import parse_json

_JSON_LINES = re.compile(r"\.jsonl(\.gz|\.zst)?$", re.IGNORECASE)
_Member = tuple[str, int, int]
"""Name within the tar, first byte, number of bytes."""


class RecordShards:
    """Samples of tar files: `KEY.json` has the record, whose `image` and `video` name files of the same sample.

    They do so by what follows the key ("jpg", "1.png"), or by the file's name; a record that has neither field gets all
    pictures and all videos of its sample, in their order. Any other name is a path beside the shards. 16 bytes of
    memory a sample. Raises `RecordError` with shard and sample: a tar that is cut off, a sample without a record, a key
    that comes twice.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.names = list(paths)
        self.files = [local_path(path, into_tars=False) for path in paths]
        self._starts, self._offsets, self._num_files = [0], array("q"), array("q")
        for name, path in zip(self.names, self.files, strict=True):
            try:
                with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                    self._scan(tar, name)
                    check_end_mark(file, tar)
            except (OSError, ValueError, tarfile.TarError) as error:
                if isinstance(error, RecordError):
                    raise
                reason = getattr(error, "strerror", None) or error
                raise RecordError(f"cannot be read as a shard: {reason}", file=name) from error
            self._starts.append(len(self._offsets))

    def _scan(self, tar: tarfile.TarFile, name: str) -> None:
        keys: set[str] = set()
        key = ""
        for member in tar:
            if member.isdir():
                continue
            if not member.isreg():
                raise ValueError(f"{member.name!r} is a link or a device; expected files")
            if _JSON_LINES.search(member.name):
                raise RecordError(f"holds a file of records; name that: {name}/{member.name}", file=name)
            before, (key, _) = key, _split(member.name)
            if key == before:
                self._num_files[-1] += 1
                continue
            if key in keys:
                raise RecordError(
                    "stands at two places; expected a sample's files behind each other",
                    file=name,
                    field=f"[{key}]",
                )
            keys.add(key)
            self._offsets.append(member.offset)
            self._num_files.append(1)
        if not keys:
            raise RecordError("holds no file", file=name)

    def __len__(self) -> int:
        return len(self._offsets)

    def file_of(self, index: int) -> str:
        """The shard of a record, as it was named."""
        return self.names[self._shard(index)]

    def place(self, index: int) -> tuple[None, str]:
        """No line, and the sample's key."""
        return None, f"[{_split(self._members(index)[0][0])[0]}]"

    def __getitem__(self, index: int) -> Any:
        """The record, with `Packed` in the place of the names of media in the shard. Raises `RecordError`."""
        members, shard = self._members(index), self._shard(index)
        name, key = self.names[shard], _split(members[0][0])[0]

        def wrong(message: str) -> RecordError:
            return RecordError(message, file=name, field=f"[{key}]")

        found = {_split(file)[1]: (file, start, size) for file, start, size in members}
        if len(found) < len(members):
            raise wrong(f"has two files of one name: {', '.join(file for file, *_ in members)}")
        if "json" not in found:
            raise wrong(f"has no {key}.json with its record, but {', '.join(file for file, *_ in members)}")
        try:
            record = parse_json(self.read(shard, *found["json"][1:]), finite=True)
        except OSError as error:
            raise wrong(f"cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise wrong(f"is not valid JSON: {error}") from error
        if not isinstance(record, Mapping):
            return record
        packed = {
            kind: {
                ending: Packed(f"{name}/{file}", self, (shard, start, size))
                for ending, (file, start, size) in found.items()
                if PurePosixPath(file).suffix.lower() in suffixes
            }
            for kind, suffixes in (("image", PICTURES), ("video", VIDEOS))
        }
        if record.get("image") is None and record.get("video") is None:
            return {**record, **{kind: list(media.values()) for kind, media in packed.items()}}
        return {**record, **{kind: _named(record.get(kind), media, name) for kind, media in packed.items()}}

    def read(self, shard: int, start: int, size: int) -> bytes:
        """Bytes of a shard. Raises `OSError`, `ValueError` where it has become shorter."""
        with self.files[shard].open("rb") as file:
            file.seek(start)
            data = file.read(size)
        if len(data) < size:
            raise ValueError(f"{self.names[shard]} ends within it")
        return data

    def _shard(self, index: int) -> int:
        return bisect_right(self._starts, index) - 1

    def _members(self, index: int) -> list[_Member]:
        shard = self._shard(index)
        try:
            with self.files[shard].open("rb") as file:
                file.seek(self._offsets[index])
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    return list(_regular(tar, self._num_files[index]))
        except (OSError, tarfile.TarError) as error:
            raise RecordError(
                f"sample {index - self._starts[shard]} cannot be read any more: {error}", file=self.names[shard]
            ) from error


def _regular(tar: tarfile.TarFile, number: int) -> Iterator[_Member]:
    """The next files of a tar."""
    while number:
        member = tar.next()
        if member is None:
            raise tarfile.ReadError("the shard is shorter than it was")
        if member.isreg():
            yield member.name, member.offset_data, member.size
            number -= 1


def _split(name: str) -> tuple[str, str]:
    """The key of a file's sample, and what follows it in lower case: "a/0001.seg.PNG" is ("a/0001", "seg.png")."""
    path = PurePosixPath(name)
    stem, _, ending = path.name.partition(".")
    return (path.parent / stem).as_posix(), ending.lower()


def _named(value: Any, media: Mapping[str, Packed], shard: str) -> Any:
    """What a record names, each that is a file of its sample as that."""
    files = {packed.name.removeprefix(f"{shard}/"): packed for packed in media.values()}
    known = {**{PurePosixPath(file).name: packed for file, packed in files.items()}, **files, **media}
    if isinstance(value, str):
        return known.get(value, value)
    if isinstance(value, list):
        return [known.get(name, name) if isinstance(name, str) else name for name in value]
    return value
