"""Tables of Hugging Face `datasets` as records: saved to disk, in Parquet or Arrow files, in memory. No torch here."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpo_plugin.data.packed import Packed
from tpo_plugin.data.storage import local_path
from tpo_plugin.errors import RecordError
from tpo_plugin.extras import needed

_MEDIA = ("image", "video")


class RecordColumns:
    """The rows of a `datasets.Dataset`, whose columns are a record's fields: `conversations`, `tasks`, `image` ...

    A medium is a path, bytes, or what the features `Image` and `Video` store: bytes or a path. Nothing is decoded, and
    the bytes of a medium are read when it is. `name` stands for all in messages; `files` are those on the disk, and
    `parts` names each with the index behind its last row, where that is known.
    """

    def __init__(
        self, dataset: Any, name: str, files: Sequence[Path] = (), parts: Sequence[tuple[str, int]] = ()
    ) -> None:
        self.name, self.files, self.parts = name, list(files), list(parts)
        self._tables = dataset.with_format("arrow")

    @classmethod
    def saved(cls, path: str) -> RecordColumns:
        """Of a folder that `Dataset.save_to_disk` wrote. Raises `RecordError`."""
        with needed():
            import datasets
        try:
            dataset = datasets.Dataset.load_from_disk(path)
        except Exception as error:  # whatever Arrow raises
            raise RecordError(f"cannot be read as a saved dataset: {error}", file=path) from error
        return cls(dataset, path, sorted(file for file in Path(path).iterdir() if file.is_file()))

    @classmethod
    def of_files(cls, paths: Sequence[str]) -> RecordColumns:
        """Of Parquet files, which `datasets` writes into its cache as Arrow first, or of Arrow files.

        Raises `RecordError`, with the file where it is one's fault.
        """
        with needed():
            import datasets
        files = [local_path(path) for path in paths]
        parts: list[Any] = []
        for path, file in zip(paths, files, strict=True):
            try:
                is_arrow = file.suffix.lower() == ".arrow"
                parts.append((datasets.Dataset.from_file if is_arrow else datasets.Dataset.from_parquet)(str(file)))
            except Exception as error:  # whatever Arrow raises
                reason = "no such file" if not file.exists() else error.__cause__ or error
                raise RecordError(f"cannot be read: {reason}", file=path) from error
        try:
            whole = datasets.concatenate_datasets(parts)
        except Exception as error:
            raise RecordError(
                f"and the {len(paths) - 1} files behind it have not the same columns: {error}", file=paths[0]
            ) from error
        ends = [sum(map(len, parts[: number + 1])) for number in range(len(parts))]
        return cls(whole, paths[0], files, list(zip(paths, ends, strict=True)))

    def __len__(self) -> int:
        return len(self._tables)

    def file_of(self, index: int) -> str:
        """The file of a row, where the table is made of several; else the table's name."""
        return self.parts[self._part(index)][0] if self.parts else self.name

    def place(self, index: int) -> tuple[None, str]:
        """No line, and the row, from 0, in its file."""
        part = self._part(index) if self.parts else 0
        return None, f"[{index - (self.parts[part - 1][1] if part else 0)}]"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record, with `Packed` for media that stand in the row. Raises `RecordError`."""
        try:
            row = self._tables[index : index + 1]
            return {name: self._value(index, name, row.column(name)[0]) for name in row.column_names}
        except (OSError, ValueError) as error:  # Arrow's errors are such
            raise RecordError(
                f"cannot be read: {error}", file=self.file_of(index), field=self.place(index)[1]
            ) from error

    def read(self, index: int, column: str, number: int) -> bytes:
        """The bytes of a row's medium. Raises `ValueError` where there are none."""
        data = _bytes_of(_cells(self._tables[index : index + 1].column(column)[0])[number])
        if data is None:
            raise ValueError("the row has neither bytes nor a path")
        return bytes(data.as_py())

    def _value(self, index: int, column: str, cell: Any) -> Any:
        if column not in _MEDIA or not cell.is_valid:
            return cell.as_py()
        media: list[Any] = []
        for number, medium in enumerate(_cells(cell)):
            data, path = _bytes_of(medium), _path_of(medium)
            if data is None:
                media.append(path)
                continue
            name = f"{self.file_of(index)}{self.place(index)[1]}/{column}{number}" + (
                f"/{Path(path).name}" if path else ""
            )
            media.append(Packed(name, self, (index, column, number)))
        return media

    def _part(self, index: int) -> int:
        return bisect_right([end for _, end in self.parts], index)


def _cells(cell: Any) -> list[Any]:
    """The media of a cell, which is one, or a list of them."""
    return list(cell) if hasattr(cell, "values") and not hasattr(cell, "keys") else [cell]


def _bytes_of(medium: Any) -> Any:
    """The Arrow scalar of a medium's bytes; None where there are none."""
    data = medium["bytes"] if hasattr(medium, "keys") else medium if _is_binary(medium) else None
    return data if data is not None and data.is_valid else None


def _path_of(medium: Any) -> Any:
    value = medium["path"].as_py() if hasattr(medium, "keys") else medium.as_py()
    return None if isinstance(value, bytes) else value


def _is_binary(scalar: Any) -> bool:
    return "binary" in str(scalar.type)
