"""What a file is known by: size, time, and a hash of blocks that are spread over it. No torch in here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

BLOCK, NUM_BLOCKS = 1 << 20, 64
"""Files of up to 64 MiB are hashed whole; of a larger one 64 blocks of 1 MiB, the first and the last among them."""


class Fingerprint(NamedTuple):
    """Of one file."""

    size: int
    """Bytes."""
    mtime_ns: int
    """When it was written last."""
    sha256: str
    """Of its blocks, in hexadecimal digits."""

    @property
    def whole(self) -> bool:
        """Whether all of the file was hashed."""
        return self.size <= BLOCK * NUM_BLOCKS


def fingerprint(path: str | Path) -> Fingerprint:
    """Of a file as it lies there now, in well under a second for one of any size. Raises `OSError`."""
    path = Path(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        last = max(size - BLOCK, 0)
        whole = size <= BLOCK * NUM_BLOCKS
        for start in range(0, size, BLOCK) if whole else (last * n // (NUM_BLOCKS - 1) for n in range(NUM_BLOCKS)):
            file.seek(start)
            digest.update(file.read(BLOCK))
    return Fingerprint(size, path.stat().st_mtime_ns, digest.hexdigest())
