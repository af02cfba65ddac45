"""JSON Lines files, also gzip, with errors that name file and line."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import tpo_plugin as tpo
from tpo_plugin.json_file import parse_json as parse

MAX_BYTES = 1 << 28
"""What a .gz file may unpack to."""


def read_jsonl(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank. Raises `RecordError`."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            row = parse_json(line, path, number)
            if not isinstance(row, dict):
                raise tpo.RecordError(f"is {type(row).__name__}, expected an object", file=str(path), line=number)
            rows.append((number, row))
    if not rows:
        raise tpo.RecordError("holds no line", file=str(path))
    return rows


def read_text(path: str | Path) -> str:
    """A UTF-8 text file, unpacked where its name ends in .gz."""
    try:
        return (_unpacked(path) if str(path).endswith(".gz") else Path(path).read_bytes()).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise tpo.RecordError(f"cannot be read: {getattr(error, 'strerror', None) or error}", file=str(path)) from error


def _unpacked(path: str | Path) -> bytes:
    with gzip.open(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes; unpack it yourself")
    return data


def parse_json(text: str, path: str | Path, line: int | None = None) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise tpo.RecordError(f"is not valid JSON: {error}", file=str(path), line=line) from error
