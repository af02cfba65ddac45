"""Videos that are written: their sizes and times, and what cannot be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tpo_plugin as tpo
from tpo_plugin.data import VideoOptions, read_video, stream_video, write_video


def test_odd_sizes_lose_a_line(tmp_path: Path) -> None:
    frames = [(index / 5, np.full((33, 47, 3), 100, np.uint8)) for index in range(3)]
    clip = read_video(write_video(tmp_path / "out.mp4", frames), VideoOptions(num_frames=3))
    assert clip.frames.shape == (3, 32, 46, 3)
    assert np.abs(clip.frames.astype(int) - 100).max() < 5
    assert clip.duration_s == pytest.approx(0.6)


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    starts = [0.0, 0.04, 0.5, 0.51, 2.0]
    path = write_video(tmp_path / "a.mp4", zip(starts, [np.zeros((32, 32, 3), np.uint8)] * 5, strict=True))
    assert [second for second, _ in stream_video(path)] == pytest.approx(starts, abs=1e-4)


def test_what_cannot_be_encoded_leaves_no_file(tmp_path: Path) -> None:
    path, frame = tmp_path / "a.mp4", np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(tpo.TPOError, match=r"frame 1 is of shape \[16, 32, 3\], those before \[32, 32, 3\]"):
        write_video(path, [(0.0, frame), (0.1, frame[:16])])
    with pytest.raises(tpo.TPOError, match="a frame at 0.0 s comes behind one at 0.0 s; expected ascending times"):
        write_video(path, [(0.0, frame), (0.0, frame)])
    with pytest.raises(tpo.TPOError, match="no frame was given to encode"):
        write_video(path, [])
    assert list(tmp_path.iterdir()) == []
