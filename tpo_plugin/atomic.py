"""Files that are there whole or not at all. No torch in here."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4


def replace_file(path: Path, write: Callable[[str], Any]) -> None:
    """Writes a file under a temporary name in the same directory and renames it: nobody finds half of it.

    It is on the disk when this returns, so that what is written later is never there without it.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        write(str(temporary))
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk, where the file system can do that."""
    if os.name == "nt":  # which opens no directory, and flushes no file that is open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
