"""Features on disk: one file a video or a text, npz or safetensors, as QVHighlights' users exchange them.

L clips or words, C width. A file holds `features` [L, C] (or, for words, `last_hidden_state`, or one array of any
name); files of `tpo cache-features` also hold `times_s` [L], when each frame is shown, and the video's length.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

import tpo_plugin as tpo
from tpo_plugin.checks import is_number
from tpo_plugin.errors import shown
from tpo_plugin.json_file import parse_json

SUFFIXES = (".safetensors", ".npz")
KEYS = ("features", "last_hidden_state")
MAX_NUMBERS = 32_000_000
"""Of a file's features, unless the head's configuration says otherwise (`max_feature_numbers`): six hours of video in
clips of two seconds, each 2816 wide."""
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
    max_numbers: int = MAX_NUMBERS,
) -> Tensor:
    """Features [L, C] of a video or text, float32: one file for each kind of feature, side by side.

    Each kind is divided by its length, x / (|x| + 1e-5), and all are cut to the shortest. With the video's
    `duration_s` the number of clips is checked: against the length stored in the file, else, with `clip_s`, against
    duration_s / clip_s. Raises `MediaError` for a file that is missing, cannot be read or holds more than
    `max_numbers`, or whose length disagrees with the others' or with the video's by more than two clips.
    """
    kinds = []
    for path in paths:
        found = read_features(path, max_numbers)
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


def load_times(path: str | Path, max_numbers: int = MAX_NUMBERS) -> Tensor | None:
    """When the frames of a file of `tpo cache-features` are shown, float64 [L]; None for files that do not say."""
    times_s = read_features(path, max_numbers).times_s
    return None if times_s is None else torch.from_numpy(times_s)


def find_features(folder: str | Path, *names: str) -> Path:
    """The file of the first of some names that is in a folder. Raises `MediaError` that names what was looked for."""
    for name in names:
        if Path(name).name != name:
            raise tpo.MediaError(f"{shown(name)} is no file's name; expected one, by which its features are found")
        for suffix in SUFFIXES:
            path = Path(folder) / (name + suffix)
            if os.path.isfile(path):
                return path
    looked_for = " or ".join(f"{name}{{{','.join(SUFFIXES)}}}" for name in names)
    reason = "has no" if Path(folder).is_dir() else "is no folder; it should have"
    raise tpo.MediaError(f"{folder}: {reason} features {looked_for}; compute them with `tpo cache-features`")


def read_features(path: str | Path, max_numbers: int = MAX_NUMBERS) -> FeatureFile:
    """One file, of which only the arrays that are needed are read.

    Raises `MediaError` where it cannot be read, holds something else than finite numbers [L, C] or times that do not
    fit them, or more than `max_numbers`.
    """
    path = Path(path)
    if not os.path.isfile(path):  # also for a name that no file can have
        raise tpo.MediaError(f"{path}: no such file of features; compute it with `tpo cache-features`")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:  # numpy has no bfloat16
                about = read_about(file)
                return _checked(file.keys(), lambda name: _tensor(file, name, max_numbers), about)
        if path.suffix == ".npz":
            with path.open("rb") as data, np.load(data, allow_pickle=False) as file:  # which may leave its own open
                return _checked(file.files, lambda name: _array(file, name, max_numbers), None)
        raise ValueError(f"its name should end in {' or '.join(SUFFIXES)}")
    except tpo.MediaError as error:
        raise tpo.MediaError(f"{path}: {error}") from error.__cause__
    except Exception as error:  # whatever zipfile, numpy or safetensors raise
        reason = str(error) or type(error).__name__
        raise tpo.MediaError(f"{path}: cannot be read as features: {reason}") from error


def read_about(file: Any) -> dict[str, Any] | None:
    """What `save_features` was told, of an open safetensors file. Raises `ValueError` where it cannot be read."""
    text = (file.metadata() or {}).get("tpo")
    if text is None:
        return None
    about = parse_json(text, finite=True)
    duration_s = about.get("duration_s", 0) if isinstance(about, dict) else None
    if not is_number(duration_s):
        raise ValueError(f"its metadata 'tpo' is {shown(text)}; expected an object, its duration_s in seconds")
    return about


def save_features(path: Path, features: Tensor, times_s: np.ndarray | None, about: dict[str, Any]) -> None:
    """Writes a safetensors file under a temporary name first, so that no half file is ever found."""
    from safetensors.numpy import save_file

    from tpo_plugin.atomic import replace_file

    arrays = {"features": features.numpy().astype(np.float32)}
    if times_s is not None:
        arrays["times_s"] = times_s.astype(np.float64)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: save_file(arrays, temporary, metadata={"tpo": json.dumps(about)}))


def _checked(names: Collection[str], read: Callable[[str], np.ndarray], about: dict[str, Any] | None) -> FeatureFile:
    """The features and, where they are there, their times. Raises `MediaError`."""
    key = next((key for key in KEYS if key in names), None) or (next(iter(names)) if len(names) == 1 else None)
    if key is None:
        held = ", ".join(map(repr, names))[:200] or "nothing"
        raise tpo.MediaError(f"holds {held}, expected {' or '.join(map(repr, KEYS))}")
    array = read(key)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
        raise tpo.MediaError(f"{key!r} is {array.dtype} {list(array.shape)}, expected numbers [clips, width]")
    with np.errstate(over="ignore"):  # a float64 that no float32 holds
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise tpo.MediaError(f"{key!r} holds numbers that are not finite")
    if "times_s" not in names:
        return FeatureFile(array, None, about)
    times_s = read("times_s")
    if times_s.dtype.kind != "f" or times_s.shape != (len(array),) or not (np.diff(times_s, prepend=0) >= 0).all():
        raise tpo.MediaError(
            f"'times_s' is {times_s.dtype} {list(times_s.shape)}, expected {len(array)} ascending seconds"
        )
    return FeatureFile(array, times_s.astype(np.float64), about)


def _tensor(file: Any, name: str, max_numbers: int) -> np.ndarray:
    _check_size(name, math.prod(file.get_slice(name).get_shape()), max_numbers)
    tensor = file.get_tensor(name)
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _array(file: Any, name: str, max_numbers: int) -> np.ndarray:
    """An array of an npz; its size is what the archive says, beyond which nothing is unpacked."""
    member = file.zip.getinfo(name if name in file.zip.namelist() else f"{name}.npy")
    _check_size(name, member.file_size // 8, max_numbers)  # the widest numbers have 8 bytes
    return file[name]


def _check_size(name: str, num: int, max_numbers: int) -> None:
    if num > max_numbers:
        raise tpo.MediaError(
            f"{name!r} holds {num} numbers; expected at most max_feature_numbers={max_numbers}, which the temporal "
            "head's configuration may raise"
        )


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
