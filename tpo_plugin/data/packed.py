"""Media that lie inside of a shard, as bytes of a tar or of a table. No torch in here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from tpo_plugin.data.storage import cached

PICTURES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
VIDEOS = frozenset((".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts"))
"""Suffixes by which a member of a tar is known."""


class Container(Protocol):
    """What holds media."""

    def read(self, *at: Any) -> bytes:
        """The bytes of one medium. Raises `OSError` or `ValueError`."""


@dataclass(frozen=True)
class Packed:
    """A picture or a video in a shard. Its bytes are read when they are needed, by the process that needs them."""

    name: str
    """The shard, and what it is called there: "shards/000.tar/0001.jpg"."""
    container: Container = field(repr=False, compare=False)
    at: tuple[Any, ...] = field(repr=False)
    """Where it lies there."""

    def __str__(self) -> str:
        return self.name

    @property
    def stem(self) -> str:
        """Its name without folder and suffix."""
        return PurePosixPath(self.name).stem

    def read(self) -> bytes:
        """Its bytes. Raises `OSError` or `ValueError`."""
        return self.container.read(*self.at)

    def file(self) -> Path:
        """A file with its bytes, in the cache (`storage.cache_folder`): equal ones are one file. Raises as `read`."""
        data, path = self.read(), PurePosixPath(self.name)
        suffix = path.suffix if path.suffix.lower() in PICTURES | VIDEOS else ""  # none that a reader obeys
        return cached([hashlib.sha256(data).hexdigest()], path.stem + suffix, lambda target: target.write_bytes(data))


Medium = Path | Packed
