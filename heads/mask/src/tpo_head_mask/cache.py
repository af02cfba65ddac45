"""Image embeddings on disk, so that a frozen image encoder sees each frame once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tpo_head_mask.backends.base import Backend, Features
from tpo_plugin.atomic import replace_file

MAPS = ("fine", "middle", "coarse")


class EmbeddingCache:
    """Features of frames by key, in float16, one file a frame, in a folder of its own for each image encoder.

    Several processes may use it at once: a file is written under a temporary name and renamed.
    """

    def __init__(self, folder: str, sha256: str, image_size: int) -> None:
        """`sha256` is that of the encoder's checkpoint, or of its weights."""
        self.folder = Path(folder) / f"{sha256[:16]}-{image_size}"
        """Where this encoder's files are."""

    def load(self, key: str) -> Features | None:
        """The features of one frame (F = 1), or None where they are not there."""
        path = self._path(key)
        if not path.is_file():
            return None
        maps = load_file(path)
        return Features(*(maps[name].float()[None] for name in MAPS))

    def save(self, key: str, features: Features) -> None:
        """Keeps the features of one frame (F = 1)."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        maps = {name: m[0].detach().half().cpu().contiguous() for name, m in zip(MAPS, features.maps, strict=True)}
        replace_file(path, lambda temporary: save_file(maps, temporary))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def rounded(features: Features) -> Features:
    """As they come back from the disk: a frame gives the same numbers the first time and later."""
    return Features(*(m.half().float() for m in features.maps))


def frame_key(medium: Any, time_s: float) -> str:
    """Names a frame by its file, the file's date and size, and its time; by its bytes where it lies in a shard."""
    if not isinstance(medium, (str, os.PathLike)):
        return hashlib.sha256(medium.read()).hexdigest()
    stat = os.stat(medium)
    text = f"{os.path.abspath(medium)}|{stat.st_mtime_ns}|{stat.st_size}|{time_s:.6f}"
    return hashlib.sha256(text.encode()).hexdigest()


def hash_of_weights(backend: Backend) -> str:
    """SHA-256 of an image encoder's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(backend.model.state_dict().items()):
        if name.startswith(("image_encoder.", "vision_encoder.")) or ".conv_s" in name:
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def concatenated(parts: list[Features]) -> Features:
    """Frames one behind another."""
    return Features(*(torch.cat(maps) for maps in zip(*(p.maps for p in parts), strict=True)))
