from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tpo_plugin.data.sampling import fps_indices, middle_indices, sample_indices, uniform_indices


def test_uniform_takes_first_and_last_and_repeats_in_short_videos() -> None:
    assert uniform_indices(100, 4) == [0, 33, 66, 99]
    assert uniform_indices(5, 5) == [0, 1, 2, 3, 4]
    assert uniform_indices(3, 6) == [0, 0, 0, 1, 1, 2]
    assert uniform_indices(9, 1) == [0]


def test_middle_and_fps_equal_the_released_code(shared: Path) -> None:
    cases = json.loads((shared / "golden/videochat_tpo/frame_indices.json").read_text())
    assert {case["sample"] for case in cases} == {"middle", "fps1.0", "fps8.0"}
    for case in cases:
        total = case["vlen"]
        if case["sample"] == "middle":
            got = middle_indices(total, case["num_frames"])
        else:
            rate = case["input_fps"]
            got = fps_indices(np.arange(total) / rate, total / rate, float(case["sample"].removeprefix("fps")))
        assert got == case["indices"], case


def test_fps_follows_the_true_times_of_an_uneven_video() -> None:
    times_s = np.concatenate([np.arange(0, 1, 0.1), np.arange(1, 5, 1.0)])  # ten frames in a second, then one a second
    indices = fps_indices(times_s, 4.4, fps=2)
    wanted_s = np.arange(0.25, 4.4, 0.5)[:8]
    assert indices == [2, 8, 10, 11, 11, 12, 12, 13]
    assert np.allclose(np.abs(times_s[indices] - wanted_s), [np.abs(times_s - t).min() for t in wanted_s])


def test_fps_takes_the_middle_frame_of_a_very_short_video() -> None:
    times_s = np.arange(6) * 0.05
    assert fps_indices(times_s, 0.3, 1) == []
    assert sample_indices(times_s, 0.3, "fps", 4, 1.0) == [3]


def test_fps_thins_a_long_video_evenly() -> None:
    times_s = np.arange(100) * 0.1
    assert fps_indices(times_s, 10.0, 1) == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]
    assert sample_indices(times_s, 10.0, "fps", 4, 1.0) == [5, 35, 65, 95]
