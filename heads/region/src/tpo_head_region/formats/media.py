"""Media as rows name them: paths, pictures that stand in the row, and what cannot be read from here."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Any

import tpo_plugin as tpo
from tpo_plugin.convert import Place, StoredPicture

_DATA = re.compile(r"data:image/[\w.+-]+;base64,(.*)", re.DOTALL)


def stored_or_none(value: Any, name: str, place: Place) -> StoredPicture | None:
    """The picture that stands in a row, as `datasets` writes it: {"bytes", "path"}; None where there is none."""
    if value is None or isinstance(value, str):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("bytes"), (bytes, type(None))):
        raise place.fault(value, "a path, or an object with the picture's bytes")
    data = value.get("bytes")
    return None if data is None else StoredPicture(name, data)


def medium(value: Any, name: str, root: Path, place: Place) -> Path | StoredPicture:
    """The picture or video that a row names; relative paths start at `root`. Raises `Fault` and `MediaError`."""
    if stored := stored_or_none(value, name, place):
        return stored
    if isinstance(value, dict):
        value = value.get("path")
    if not isinstance(value, str) or not value:
        raise place.fault(value, "a path, or an object with the picture's bytes")
    if match := _DATA.fullmatch(value):
        try:
            return StoredPicture(name, base64.b64decode(match[1], validate=True))
        except binascii.Error as error:
            raise place.fault(value, f"base64 ({error})") from None
    path = re.sub(r"^file:(//)?", "", value)
    if "://" in path:
        raise tpo.MediaError(f"{path}: is an address; expected a file of this machine")
    found = root / path
    if not found.is_file():
        raise tpo.MediaError(f"{found}: no such file")
    return found
