"""Reading sources: files, and typed rows out of them. What is wrong is a `Fault` with its place."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tpo_plugin import json_file
from tpo_plugin.convert.report import MISSING, Place
from tpo_plugin.data.sources import RecordFile
from tpo_plugin.data.storage import local_path
from tpo_plugin.errors import RecordError
from tpo_plugin.extras import needed

RowT = TypeVar("RowT", bound="Row")


class Row(BaseModel):
    """An object of a source. A subclass names the fields that it needs, with their types; others are left alone.

    Nothing is converted: a text is no number.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def read(cls: type[RowT], value: Any, place: Place) -> RowT:
        """The object that stands at `place`. Raises `Fault` for the first field that is missing or of another type."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            message = found["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            given = found["input"]
            if found["type"] == "missing":
                given, message = MISSING, f"an object with it, beside {', '.join(map(repr, found['input'])):.60}"
            raise place.at(*found["loc"]).fault(given, message) from error


def local(text: str) -> Path:
    """The local file or folder that a source names, fetched and unpacked where need be: see `storage.local_path`."""
    return local_path(text)


def read_text(path: Path, encoding: str = "utf-8-sig") -> str:
    """A text file's content. Raises `RecordError`."""
    try:
        return path.read_text(encoding=encoding)
    except (OSError, ValueError) as error:  # ValueError: of bytes that are no text, of a name with a null byte
        raise RecordError(f"cannot be read: {getattr(error, 'strerror', None) or error}", file=str(path)) from error


def read_json(path: Path) -> Any:
    """A JSON file's content, whole. Raises `RecordError`."""
    return parse_json(read_text(path), Place(str(path)))


def parse_json(text: str, place: Place) -> Any:
    """The value of a JSON text that stands at `place`. Raises `Fault`."""
    try:
        return json_file.parse_json(text)
    except ValueError as error:
        raise RecordError(
            f"is not valid JSON: {error}", file=place.file, line=place.line, field=place.path or None
        ) from error


def lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[Place, str]]:
    """The lines of a text file that are not blank, each with its place. Raises `RecordError`."""
    for number, line in enumerate(read_text(path, encoding).split("\n"), start=1):
        if line.strip():
            yield Place(str(path), number), line.strip("\r")


class Rows:
    """The values of a JSON Lines file, of one JSON list, or of a Parquet file, each read when it is asked for.

    Raises `RecordError` where the file cannot be read, `TPOError` where the package that reads it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._file: RecordFile | _Parquet = _Parquet(path) if path.suffix == ".parquet" else RecordFile(path)

    def __len__(self) -> int:
        return len(self._file)

    def place(self, index: int) -> Place:
        line, path = self._file.place(index)
        return Place(self._file.name, line, path)

    def __getitem__(self, index: int) -> Any:
        """Raises `RecordError` where it is no JSON."""
        return self._file[index]


class _Parquet:
    """Rows of a Parquet file, of which one group of rows is in memory."""

    def __init__(self, path: Path) -> None:
        with needed():
            import pyarrow.parquet
        self.name = str(path)
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except (OSError, pyarrow.ArrowException) as error:
            raise RecordError(f"cannot be read as Parquet: {error}", file=self.name) from error
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._ends = list(accumulate(sizes))
        self._group, self._rows = -1, None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def place(self, index: int) -> tuple[None, str]:
        return None, f"[{index}]"

    def __getitem__(self, index: int) -> Any:
        group = bisect_right(self._ends, index)
        if group != self._group:
            self._group, self._rows = group, self._file.read_row_group(group)
        start = self._ends[group - 1] if group else 0
        return self._rows.slice(index - start, 1).to_pylist()[0]  # type: ignore[attr-defined]
