"""The picture of a prediction in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from tpo_head_temporal.timeline import CURVE, PREDICTED, TRUE, WIDTH, draw_timeline, render_timeline

import tpo_plugin as tpo

LEFT, RIGHT = 116, WIDTH - 32


def clip(num: int = 8, duration_s: float = 20.0, size: tuple[int, int] = (36, 64)) -> tpo.VideoClip:
    frames = np.zeros((num, *size, 3), np.uint8)
    frames[:] = (np.arange(num) * 30).reshape(-1, 1, 1, 1)
    return tpo.VideoClip(frames, np.arange(num) * duration_s / num, duration_s)


def columns(picture: Image.Image, colour: str, rows: int = 10) -> tuple[float, float]:
    """Seconds of a 20 s video from where to where a colour stands, in columns that have it on so many rows."""
    near = np.abs(np.asarray(picture).astype(int) - ImageColor.getrgb(colour)).max(-1) < 40
    found = np.nonzero(near.sum(0) >= rows)[0]
    return tuple((x - LEFT) / (RIGHT - LEFT) * 20 for x in (found[0], found[-1] + 1))


def test_spans_stand_at_their_seconds() -> None:
    picture = render_timeline(clip(), {"spans_s": [[5, 12]], "scores": [0.9]}, {"spans_s": [[6, 16.5]]})
    assert picture.size[0] == WIDTH
    assert columns(picture, PREDICTED) == pytest.approx((5, 12), abs=0.06)
    assert columns(picture, TRUE) == pytest.approx((6, 16.5), abs=0.06)


def test_the_curve_peaks_at_its_time() -> None:
    times_s = np.array([0, 1, 2, 14, 15, 16])  # uneven: a video of varying frame rate
    picture = render_timeline(
        clip(), {"spans_s": [[0, 1]], "saliency": [0, 0, 0, 5, 0, 0], "times_s": times_s, "scores": None}
    )
    near = np.abs(np.asarray(picture).astype(int) - ImageColor.getrgb(CURVE)).max(-1) < 40
    near[:, :LEFT] = False
    top = np.nonzero(near.any(1))[0][0]
    peak_s = (np.nonzero(near[top])[0].mean() - LEFT) / (RIGHT - LEFT) * 20
    assert peak_s == pytest.approx(14, abs=0.1)


def test_thumbnails_show_what_is_on_screen_then() -> None:
    """The eight frames are grey of 0, 30, 60, ..., each for 2.5 s."""
    row = np.asarray(render_timeline(clip(), {"spans_s": []}))[60, LEFT:RIGHT, 0]
    num = 7  # as many 64:36 pictures of 92 pixels' height
    middles = (np.arange(num) + 0.5) / num
    shown = [row[round(share * len(row))] for share in middles]
    assert shown == pytest.approx([30 * int(share * 20 / 2.5) for share in middles], abs=3)


VALUES = [
    {"spans_s": []},
    {"spans_s": [[3, 3]], "scores": [0.1]},
    {"spans_s": [[0, 20]], "scores": [1.0], "saliency": [1.0], "times_s": [0.0]},
    {"spans_s": [[19.9, 20]]},
    {"spans_s": torch.tensor([[1.0, 2.0]], requires_grad=True), "scores": torch.tensor([0.5])},
]
MANY = {"spans_s": [[i, i + 1] for i in range(9)], "scores": [0.5] * 9, "saliency": [2, 2], "times_s": [0, 10]}
VIDEOS = [clip(1), clip(4, 0.2, (64, 9)), clip(3, 7200.0)]


@pytest.mark.parametrize(("value", "video"), [(v, clip()) for v in VALUES] + [(MANY, v) for v in VIDEOS], ids=range(8))
def test_awkward_values_and_videos_are_drawn(value: Any, video: tpo.VideoClip) -> None:
    picture = render_timeline(video, value, {"spans": [[0, 1]]}, title="A question that is far too long " * 20)
    assert picture.mode == "RGB"
    assert picture.width == WIDTH
    assert 150 < picture.height < 700


def test_it_is_written_as_png_one_below_the_other(tmp_path: Path) -> None:
    value = {"spans_s": [[1, 2]], "scores": [0.5]}
    one = draw_timeline(clip(), value, path=tmp_path / "answer.v1")
    assert one == tmp_path / "answer.v1.png"
    two = draw_timeline(clip(), [value, value], path=tmp_path / "two")
    with Image.open(one) as first, Image.open(two) as second:
        assert (second.width, second.height) == (first.width, 2 * first.height)
