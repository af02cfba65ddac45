"""JSON that anybody may have written, read so that all that is wrong with it is one kind of error. No torch in here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tpo_plugin.errors import TPOError, shown

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """The value of a JSON text; with `finite` neither NaN nor Infinity may stand in it.

    Raises `ValueError` that says what is wrong, also for bytes that are no UTF-8, nesting that is too deep, and half of
    a pair of surrogates, which no file or terminal takes.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = json.loads(text, parse_constant=_refuse) if finite else json.loads(text)
    except RecursionError as error:
        raise ValueError("it nests too deep to be read") from error
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def read_json(path: str | Path, what: str) -> dict[str, Any]:
    """The object in a JSON file. Raises `TPOError` with the file, what is wrong, and `what` was expected."""
    try:
        value = parse_json(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise TPOError(f"{path}: is no JSON that can be read ({error}); expected {what}") from error
    if not isinstance(value, dict):
        raise TPOError(f"{path}: holds {shown(value)}; expected an object with {what}")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
