"""What pictures and videos share: a file's errors, and how large what it holds may be."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tpo_plugin.data.packed import Packed
from tpo_plugin.errors import MediaError
from tpo_plugin.extras import MissingPackage, needed

MAX_PIXELS = 2**26
"""Of one picture or frame: 8192 x 8192. A file of a few kilobytes may hold more than any memory."""


@contextlib.contextmanager
def reading(path: str | Path | Packed, what: str) -> Iterator[None]:
    """Turns whatever a library raises into a `MediaError` with the file and the reason."""
    if not isinstance(path, Packed):
        if os.path.isdir(path):
            raise MediaError(f"{path}: is a folder; expected a file that can be read as {what}")
        if not os.path.isfile(path):
            raise MediaError(f"{path}: no such file")
        if not os.path.getsize(path):
            raise MediaError(f"{path}: cannot be read as {what}: the file is empty")
    try:
        with needed():
            yield
    except MissingPackage:  # no fault of the file
        raise
    except MediaError as error:
        known = str(error)
        raise (error if known.startswith(str(path)) else MediaError(f"{path}: {known}")) from error.__cause__
    except Exception as error:
        # decord puts its source position before a reason, and a stack trace behind it; Pillow names an object of bytes
        reason = re.sub(r"^\[[\d:]+\] \S+: | <_io.*>$", "", str(error).strip().split("\n")[0]) or type(error).__name__
        raise MediaError(f"{path}: cannot be read as {what}: {reason}") from error


def check_pixels(what: str, width: int, height: int, most: int, cure: str, *, number: int = 1) -> None:
    """Raises `MediaError` where `number` pictures of that size have more than `most` pixels together."""
    pixels = number * width * height
    if pixels > most:
        raise MediaError(f"{what} of {width} x {height} has {pixels:,} pixels, more than {most:,}; {cure}")
