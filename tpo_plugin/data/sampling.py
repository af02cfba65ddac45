"""Which frames of a video to take: pure functions from a video's times to indices."""

from __future__ import annotations

from typing import Literal

import numpy as np

Sampling = Literal["uniform", "middle", "fps"]


def uniform_indices(num_total: int, num_frames: int) -> list[int]:
    """Evenly from the first frame to the last, both included: floor(i * (num_total - 1) / (num_frames - 1)).

    Indices repeat where the video has fewer frames. One frame is the first. As LLaVA-NeXT samples.
    """
    return np.linspace(0, num_total - 1, num_frames).astype(int).tolist()


def middle_indices(num_total: int, num_frames: int) -> list[int]:
    """The middle frame of each of `num_frames` equal parts, as the released VideoChat-TPO samples.

    With a = min(num_frames, num_total) and bounds b = floor(linspace(0, num_total, a + 1)): (b_i + b_{i+1} - 1) // 2.
    Where the video has fewer frames the last index repeats.
    """
    parts = min(num_frames, num_total)
    bounds = np.linspace(0, num_total, parts + 1).astype(int)
    middles = ((bounds[:-1] + bounds[1:] - 1) // 2).tolist()
    return middles + middles[-1:] * (num_frames - parts)


def fps_indices(times_s: np.ndarray, duration_s: float, fps: float) -> list[int]:
    """The frames nearest to the times 1/2, 3/2, 5/2, ... of 1/`fps` seconds; `times_s` are those of all frames.

    At a constant rate R of the video that is round(time * R), halves to even, as the released VideoChat-TPO samples;
    at a varying rate times are taken where the frames really are. As there, the count is cut to a multiple of
    floor(`fps`), so that a rate of 8 gives whole seconds, and a video of less than one second no frame.
    """
    step = 1 / fps
    at_s = np.arange(step / 2, duration_s, step)
    places = np.interp(at_s, [*times_s, duration_s], np.arange(len(times_s) + 1))
    indices = np.rint(places.round(6)).astype(int)  # first to six digits: what is a half by intent shall be one
    indices = indices[indices < len(times_s)]
    return indices[: len(indices) - len(indices) % max(1, int(fps))].tolist()


def sample_indices(times_s: np.ndarray, duration_s: float, sampling: str, num_frames: int, fps: float) -> list[int]:
    """Indices by the name of the sampling.

    "fps" gives at most `num_frames`, thinned evenly, and the middle frame of a video that is too short for one.
    """
    num_total = len(times_s)
    if sampling == "uniform":
        return uniform_indices(num_total, num_frames)
    if sampling == "middle":
        return middle_indices(num_total, num_frames)
    indices = fps_indices(times_s, duration_s, fps) or [num_total // 2]
    if len(indices) > num_frames:
        indices = [indices[i] for i in uniform_indices(len(indices), num_frames)]
    return indices
