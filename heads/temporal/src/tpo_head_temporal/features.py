"""Features on disk: one file a video or a text, npz or safetensors, as QVHighlights' users exchange them.

L clips or words, C width. A file holds `features` [L, C] (or, for words, `last_hidden_state`, or one array of any
name); files of `tpo cache-features` also hold `times_s` [L], when each frame is shown, and the video's length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tpo_plugin as tpo

SUFFIXES = (".safetensors", ".npz")
KEYS = ("features", "last_hidden_state")
SLACK_CLIPS = 2
"""Kinds of features, and a video, may differ by so many clips: extractors cut the last, unfilled clip or keep it."""
_SLACK_S = 0.5


@dataclass(frozen=True)
class FeatureFile:
    """What one file holds."""

    features: np.ndarray
    """float32 [L, C]"""
    times_s: np.ndarray | None = None
    """When each frame is first shown, float64 [L]; None where the file does not say."""
    about: dict[str, Any] | None = None
    """What `save_features` was told; None for files of others."""


def load_features(
    paths: Sequence[str | Path],
    *,
    duration_s: float | None = None,
    clip_s: float | None = None,
    normalise: bool = True,
) -> Tensor:
    """Features [L, C] of a video or text, float32: one file for each kind of feature, side by side.

    Each kind is divided by its length, x / (|x| + 1e-5), and all are cut to the shortest. With the video's
    `duration_s` the number of clips is checked: against the length stored in the file, else, with `clip_s`, against
    duration_s / clip_s. Raises `MediaError` for a file that is missing or cannot be read, or whose length disagrees
    with the others' or with the video's by more than two clips.
    """
    kinds = []
    for path in paths:
        found = read_features(path)
        _check_length(path, found, duration_s, clip_s)
        features = found.features
        if normalise:
            features = features / (np.linalg.norm(features, axis=-1, keepdims=True) + 1e-5)
        kinds.append(features)
    lengths = [len(kind) for kind in kinds]
    if max(lengths) - min(lengths) > SLACK_CLIPS:
        named = ", ".join(f"{path}: {length}" for path, length in zip(paths, lengths, strict=True))
        raise tpo.MediaError(f"kinds of features of one video differ in their number of clips ({named})")
    return torch.from_numpy(np.concatenate([kind[: min(lengths)] for kind in kinds], axis=-1))


def load_times(path: str | Path) -> Tensor | None:
    """When the frames of a file of `tpo cache-features` are shown, float64 [L]; None for files that do not say."""
    times_s = read_features(path).times_s
    return None if times_s is None else torch.from_numpy(times_s)


def find_features(folder: str | Path, *names: str) -> Path:
    """The file of the first of some names that is in a folder. Raises `MediaError` that names what was looked for."""
    for name in names:
        for suffix in SUFFIXES:
            path = Path(folder) / (name + suffix)
            if path.is_file():
                return path
    looked_for = " or ".join(f"{name}{{{','.join(SUFFIXES)}}}" for name in names)
    reason = "has no" if Path(folder).is_dir() else "is no folder; it should have"
    raise tpo.MediaError(f"{folder}: {reason} features {looked_for}; compute them with `tpo cache-features`")


def read_features(path: str | Path) -> FeatureFile:
    """One file. Raises `MediaError` where it cannot be read or holds something else than finite numbers [L, C]."""
    path = Path(path)
    if not path.is_file():
        raise tpo.MediaError(f"{path}: no such file of features; compute it with `tpo cache-features`")
    about = None
    try:
        if path.suffix == ".safetensors":
            arrays, about = _read_safetensors(path)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        else:
            raise ValueError(f"its name should end in {' or '.join(SUFFIXES)}")
    except Exception as error:  # whatever zipfile, numpy or safetensors raise
        raise tpo.MediaError(f"{path}: cannot be read as features: {error or type(error).__name__}") from error
    return FeatureFile(_features(path, arrays), arrays.get("times_s"), about)


def save_features(path: Path, features: Tensor, times_s: np.ndarray | None, about: dict[str, Any]) -> None:
    """Writes a safetensors file under a temporary name first, so that no half file is ever found."""
    from safetensors.numpy import save_file

    from tpo_plugin.files import replace_file

    arrays = {"features": features.numpy().astype(np.float32)}
    if times_s is not None:
        arrays["times_s"] = times_s.astype(np.float64)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: save_file(arrays, temporary, metadata={"tpo": json.dumps(about)}))


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:  # numpy has no bfloat16
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = (file.metadata() or {}).get("tpo")
    arrays = {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in tensors.items()}
    return arrays, None if about is None else json.loads(about)


def _features(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    key = next((key for key in KEYS if key in arrays), None) or (next(iter(arrays)) if len(arrays) == 1 else None)
    if key is None:
        held = ", ".join(map(repr, arrays)) or "nothing"
        raise tpo.MediaError(f"{path}: holds {held}, expected {' or '.join(map(repr, KEYS))}")
    array = arrays[key]
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
        raise tpo.MediaError(f"{path}: {key!r} is {array.dtype} {list(array.shape)}, expected numbers [clips, width]")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise tpo.MediaError(f"{path}: {key!r} holds numbers that are not finite")
    return array


def _check_length(path: str | Path, found: FeatureFile, duration_s: float | None, clip_s: float | None) -> None:
    if duration_s is None:
        return
    stored_s = (found.about or {}).get("duration_s")
    if stored_s is not None and abs(stored_s - duration_s) > _SLACK_S:
        raise tpo.MediaError(
            f"{path}: is of a video of {stored_s:.2f} s, but the video lasts {duration_s:.2f} s; compute it anew"
        )
    if stored_s is None and clip_s is not None and abs(len(found.features) - duration_s / clip_s) > SLACK_CLIPS:
        raise tpo.MediaError(
            f"{path}: has {len(found.features)} clips, but the video lasts {duration_s:.2f} s, which is "
            f"{duration_s / clip_s:.1f} clips of {clip_s:g} s"
        )
