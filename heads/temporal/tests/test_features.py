"""Features on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tpo_head_temporal.features import find_features, load_features, load_times, save_features

import tpo_plugin as tpo

RNG = np.random.default_rng(0)
CLIP, SLOWFAST = RNG.normal(size=(10, 4)).astype(np.float32), RNG.normal(size=(11, 6)).astype(np.float16)


def write(path: Path, **arrays: Any) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    return path


def normalised(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    return array / (np.sqrt((array**2).sum(-1, keepdims=True)) + 1e-5)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_kinds_are_normalised_and_stand_side_by_side(tmp_path: Path, suffix: str) -> None:
    paths = [write(tmp_path / f"a{suffix}", features=SLOWFAST), write(tmp_path / f"b{suffix}", features=CLIP)]
    found = load_features(paths)
    expected = np.concatenate([normalised(SLOWFAST[:10]), normalised(CLIP)], 1)
    assert found.dtype == torch.float32
    assert found.numpy() == pytest.approx(expected, abs=1e-6)
    raw = load_features(paths, normalise=False)
    assert raw.numpy() == pytest.approx(np.concatenate([SLOWFAST[:10], CLIP], 1), abs=1e-6)


def test_a_feature_of_zeros_stays_zero(tmp_path: Path) -> None:
    assert load_features([write(tmp_path / "a.npz", features=np.zeros((3, 4)))]).tolist() == [[0.0] * 4] * 3


def test_words_as_qvhighlights_stores_them(tmp_path: Path) -> None:
    path = write(tmp_path / "qid3.npz", last_hidden_state=CLIP, pooler_output=CLIP[0])
    assert load_features([path]).numpy() == pytest.approx(normalised(CLIP), abs=1e-6)
    assert find_features(tmp_path, "3", "qid3") == path


def test_bfloat16(tmp_path: Path) -> None:
    from safetensors.torch import save_file as save_torch

    save_torch({"anything": torch.from_numpy(CLIP).bfloat16()}, tmp_path / "a.safetensors")
    assert load_features([tmp_path / "a.safetensors"]).numpy() == pytest.approx(normalised(CLIP), abs=1e-2)


def test_saved_features_have_times_and_know_their_video(tmp_path: Path) -> None:
    path, times_s = tmp_path / "deep/a.safetensors", np.array([0.5, 1.25, 7.0])
    save_features(path, torch.from_numpy(CLIP[:3]), times_s, {"duration_s": 8.0})
    assert list(path.parent.iterdir()) == [path]
    times = load_times(path)
    assert times is not None
    assert times.tolist() == times_s.tolist()
    assert load_times(write(tmp_path / "b.npz", features=CLIP)) is None
    assert load_features([path], duration_s=8.1).shape == (3, 4)
    with pytest.raises(tpo.MediaError, match=r"a\.safetensors: is of a video of 8\.00 s, but the video lasts 9\.00 s"):
        load_features([path], duration_s=9.0)


def test_a_length_that_disagrees_with_the_video(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", features=CLIP)
    for duration_s in (16.0, 20.0, 24.0):
        assert len(load_features([path], duration_s=duration_s, clip_s=2.0)) == 10
    for duration_s in (15.0, 25.0):
        with pytest.raises(
            tpo.MediaError, match=rf"a\.npz: has 10 clips, but the video lasts {duration_s:.2f} s, which"
        ):
            load_features([path], duration_s=duration_s, clip_s=2.0)
    other = write(tmp_path / "b.npz", features=RNG.normal(size=(13, 2)))
    with pytest.raises(tpo.MediaError, match=r"differ in their number of clips \(.*a\.npz: 10, .*b\.npz: 13\)"):
        load_features([path, other])


def test_what_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "a.npz"
    with pytest.raises(tpo.MediaError, match=r"a\.npz: no such file of features; compute it with `tpo cache-features`"):
        load_features([missing])
    with pytest.raises(tpo.MediaError, match=r"has no features vid\{\.safetensors,\.npz\}; compute them"):
        find_features(tmp_path, "vid")
    with pytest.raises(tpo.MediaError, match=r"nowhere: is no folder; it should have features vid"):
        find_features(tmp_path / "nowhere", "vid")
    for name in ("a.npz", "a.safetensors", "a.npy"):
        (tmp_path / name).write_bytes(b"nothing of use")
        with pytest.raises(tpo.MediaError, match=rf"{name}: cannot be read as features: "):
            load_features([tmp_path / name])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": CLIP[0]}, r"'features' is float32 \[4\], expected numbers \[clips, width\]"),
        ({"features": CLIP[:0]}, r"'features' is float32 \[0, 4\], expected"),
        ({"features": np.array([["a"]])}, r"'features' is <U1 \[1, 1\], expected"),
        ({"features": np.full((2, 2), np.nan)}, "'features' holds numbers that are not finite"),
        ({"a": CLIP, "b": CLIP}, "holds 'a', 'b', expected 'features' or 'last_hidden_state'"),
        ({}, "holds nothing, expected"),
    ],
)
def test_wrong_contents(tmp_path: Path, arrays: Any, message: str) -> None:
    with pytest.raises(tpo.MediaError, match=r"a\.npz: " + message):
        load_features([write(tmp_path / "a.npz", **arrays)])


def test_pickles_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", features=np.array([{"a": 1}]))
    with pytest.raises(tpo.MediaError, match=r"a\.npz: cannot be read as features: Object arrays cannot be loaded"):
        load_features([path])
