"""Files of records, read one record at a time: of each, only its place in the file is kept. No torch in here."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tpo_plugin.data.storage import local_path
from tpo_plugin.errors import RecordError
from tpo_plugin.json_file import parse_json

_BOM = b"\xef\xbb\xbf"
_BLANK = " \t\r\n"
_BLOCK = 1 << 24


class RecordFile:
    """A file of JSON values: JSON Lines, or one JSON list. 16 bytes of memory a record.

    `path` is whatever `storage.local_path` takes: a URL and a packed file too, which stand plain in a cache. The file
    is opened anew for each read, so that no handle is shared with a worker process. Raises `RecordError` where it
    cannot be read, or a list is no JSON.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.name = local_path(path), str(path)
        self.files = [self.path]
        if self.path.is_dir():
            found = next((file.relative_to(self.path).as_posix() for file in sorted(self.path.rglob("*.jsonl"))), None)
            example = f", as in {self.name}/{found}" if found else ""
            raise RecordError(
                f"is a tar or a folder; expected a file of records, which may stand in it{example}", file=self.name
            )
        self._offsets, self._lines, self._ends = array("q"), array("q"), array("q")
        try:
            with self.path.open("rb") as file:
                start = file.read(4096)
                is_list = start.removeprefix(_BOM).lstrip().startswith(b"[")
                file.seek(start.index(b"[") + 1 if is_list else 0)
                self._scan_list(file) if is_list else self._scan_lines(file)
        except (OSError, ValueError) as error:  # the latter: a name that no file can have
            reason = getattr(error, "strerror", None) or error
            raise RecordError(f"cannot be read: {reason}", file=self.name) from error

    def __len__(self) -> int:
        return len(self._offsets)

    def file_of(self, index: int) -> str:
        """The file of a record, as it was named."""
        return self.name

    def place(self, index: int) -> tuple[int | None, str]:
        """Line of a record, from 1, and what stands before its fields in a message: "[index]" in a list."""
        return (self._lines[index], "") if self._lines else (None, f"[{index}]")

    def __getitem__(self, index: int) -> Any:
        """The value, with neither NaN nor Infinity in it. Raises `RecordError` where it is no JSON."""
        line, prefix = self.place(index)
        try:
            with self.path.open("rb") as file:
                file.seek(self._offsets[index])
                text = file.read(self._ends[index] - self._offsets[index]) if self._ends else file.readline()
            return parse_json(text, finite=True)
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}"
            raise RecordError(reason, file=self.name, line=line, field=prefix or None) from error
        except ValueError as error:  # also a wrong encoding
            raise RecordError(f"is not valid JSON: {error}", file=self.name, line=line, field=prefix or None) from error

    def _scan_lines(self, file: BinaryIO) -> None:
        offset = 0
        for number, line in enumerate(file, start=1):
            if line.strip(b" \t\r\n\xef\xbb\xbf"):
                self._offsets.append(offset)
                self._lines.append(number)
            offset += len(line)

    def _scan_list(self, file: BinaryIO) -> None:
        try:
            for start, end in _elements(file):
                self._offsets.append(start)
                self._ends.append(end)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"is not valid JSON: {error}", file=self.name) from error


def _elements(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """First byte of each element of a JSON list, and the one behind its last. Raises `ValueError` where it is none.

    The file stands behind the list's bracket. It is read in blocks as Latin-1, in which a character is a byte, and
    JSON's own characters are what they are.
    """
    decoder = json.JSONDecoder()
    begin = file.tell()  # of the text in the file
    text, at, number = file.read(_BLOCK).decode("latin-1"), 0, 0
    while True:
        try:
            at = _skip(text, at)
            if number == 0 and text[at] == "]":
                after = at
                break
            end = decoder.raw_decode(text, at)[1]
            after = _skip(text, end)
            separator = text[after]
        except (IndexError, json.JSONDecodeError) as error:  # perhaps the text ends within an element
            more = file.read(max(_BLOCK, len(text) - at))
            if not more:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else "it ends within the list"
                byte = begin + (error.pos if isinstance(error, json.JSONDecodeError) else len(text))
                raise ValueError(f"{reason} at byte {byte}, in element [{number}]") from None
            text, begin, at = text[at:] + more.decode("latin-1"), begin + at, 0
            continue
        yield begin + at, begin + end
        if separator == "]":
            break
        if separator != ",":
            raise ValueError(f"expected ',' or ']' at byte {begin + after}, behind element [{number}]")
        at, number = after + 1, number + 1
    rest = text[after + 1 :]
    while not rest.strip(_BLANK):
        rest = file.read(_BLOCK).decode("latin-1")
        if not rest:
            return
    raise ValueError(f"something stands behind the list, which ends at byte {begin + after}")


def _skip(text: str, at: int) -> int:
    while text[at] in _BLANK:
        at += 1
    return at
