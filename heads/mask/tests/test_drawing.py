from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tpo_head_mask import rle
from tpo_head_mask.drawing import draw_boxes, draw_masks, draw_video, fitted

import tpo_plugin as tpo

GREY = Image.new("RGB", (96, 64), (100, 100, 100))
MASK = np.zeros((64, 96), dtype=bool)
MASK[20:40, 30:60] = True
ORANGE, BLUE, GREEN = (255, 140, 0), (30, 144, 255), (0, 194, 168)


def test_masks_are_filled_and_true_ones_outlined() -> None:
    other = np.roll(MASK, 30, axis=1)
    for first in (MASK, rle.encode(MASK)):
        drawn = draw_masks(GREY, [first, None, EMPTY], [other])
        assert drawn.size == GREY.size
        assert drawn.getpixel((45, 30)) == (177, 120, 50)  # half grey, half orange
        assert drawn.getpixel((45, 19)) == ORANGE  # its edge lies around it
        assert drawn.getpixel((45, 18)) == (33, 33, 33)  # and a dark rim around that
        assert drawn.getpixel((75, 19)) == BLUE
        assert drawn.getpixel((75, 30)) == (100, 100, 100)
        assert drawn.getpixel((5, 5)) == (100, 100, 100)
    assert GREY.getpixel((45, 30)) == (100, 100, 100)


EMPTY = np.zeros_like(MASK)


def test_masks_touch_the_border_and_differ_in_colour() -> None:
    full = np.ones_like(MASK)
    drawn = draw_masks(GREY.convert("L"), [full, MASK])
    assert drawn.getpixel((0, 0)) == (177, 120, 50)
    assert drawn.getpixel((45, 19)) == GREEN
    with pytest.raises(tpo.TPOError, match=r"a mask of shape \[3, 3\] does not fit a picture of \[64, 96\]"):
        draw_masks(GREY, [np.ones((3, 3))])


def test_boxes_with_the_way_they_came() -> None:
    trail = [[0.1, 0.2, 0.3, 0.4], None, [0.2, 0.4, 0.4, 0.6], [0.5, 0.4, 0.7, 0.6]]
    drawn = draw_boxes(GREY, [trail, [None]], [[0.0, 0.0, 0.2, 0.1]])
    assert drawn.getpixel((round(0.5 * 95), 30)) == ORANGE  # the left side of the last box
    assert ORANGE in {drawn.getpixel((40, 31)), drawn.getpixel((40, 32))}  # between the last two centres
    assert drawn.getpixel((round(0.2 * 95), round(0.3 * 63))) == (100, 100, 100)  # not across the gap
    assert drawn.getpixel((0, 3)) == BLUE
    assert GREY.getpixel((48, 30)) == (100, 100, 100)


def frames(num: int, size: tuple[int, int] = (64, 96)) -> Iterator[tuple[float, np.ndarray]]:
    for index in range(num):
        yield index / 5, np.full((*size, 3), 100, np.uint8)


def read(path: Path) -> tuple[list[float], list[np.ndarray], float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoded = list(container.decode(stream))
        duration_s = float(stream.duration * stream.time_base)
        assert stream.codec_context.name == "h264"
        return [frame.time for frame in decoded], [frame.to_ndarray(format="rgb24") for frame in decoded], duration_s


def near(pixel: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() < 40)  # H.264 halves the resolution of colour


def test_a_video_with_masks_and_boxes(tmp_path: Path) -> None:
    masks = [rle.encode(MASK), None, np.roll(MASK, -10, axis=0)]
    objects = [
        {"times": [0.2, 0.6, 1.0], "masks": masks},
        {"times": [0.0], "boxes": [[0.0, 0.8, 0.2, 0.9]]},
    ]
    targets = [{"times": [0.0], "masks": [np.roll(MASK, 20, axis=0)]}]
    path = draw_video(tmp_path / "out.mp4", frames(6), objects, targets, end_s=3.0)
    times, pictures, duration_s = read(path)
    assert times == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert duration_s == pytest.approx(3.0)
    shown = [near(picture[36, 45], (177, 120, 50)) for picture in pictures]
    assert shown == [False, True, True, False, False, False]  # from its time to the object's next
    assert near(pictures[5][20, 45], (177, 120, 50))
    assert all(near(picture[50, 45], (100, 100, 100)) for picture in pictures)  # inside of the true one
    red, _, blue = pictures[0][60, 45].astype(int)
    assert blue > red + 40  # at its edge
    assert list(tmp_path.iterdir()) == [path]


def test_the_way_of_a_mask_is_shown(tmp_path: Path) -> None:
    times = [0.0, 0.2, 0.4]
    small = np.zeros_like(MASK)
    small[4:12, 4:12] = True
    moved = [np.roll(small, (20 * k, 30 * k), axis=(0, 1)) for k in range(3)]
    for gap in (False, True):
        masks = [moved[0], EMPTY if gap else moved[1], moved[2]]
        path = draw_video(tmp_path / "way.mp4", frames(3), [{"times": times, "masks": masks}])
        last = read(path)[1][-1].astype(int)
        assert (last[14:22, 20:26, 0].max() > 150) is not gap  # orange between the first two centres


def test_a_real_video(shared: Path, tmp_path: Path) -> None:
    from tpo_plugin.data import VideoOptions, read_video

    clip = read_video(shared / "media/01_dog.mp4", VideoOptions(num_frames=4))
    mask = np.zeros(clip.frames.shape[1:3], dtype=bool)
    mask[300:400, 500:700] = True
    times = clip.times_s.tolist()
    objects = [{"times": times, "masks": [mask] * 4}]
    path = draw_video(tmp_path / "dog.mp4", zip(times, clip.frames, strict=True), objects, end_s=clip.duration_s)
    again = read_video(path, VideoOptions(num_frames=4))
    assert again.times_s == pytest.approx(clip.times_s, abs=1e-4)
    assert again.duration_s == pytest.approx(clip.duration_s, abs=1e-4)
    outside = np.abs(again.frames[:, :200].astype(int) - clip.frames[:, :200]).mean()
    assert outside < 4
    assert np.abs(again.frames[:, 340:360, 600].astype(int) - clip.frames[:, 340:360, 600]).mean() > 20


def test_a_small_video_is_enlarged_and_a_mask_fits_an_enlarged_picture(tmp_path: Path) -> None:
    objects = [{"times": [0.0], "masks": [rle.encode(MASK)]}]
    _, pictures, _ = read(draw_video(tmp_path / "a.mp4", frames(2), objects, least_side=300))
    assert pictures[0].shape == (192, 288, 3)
    assert near(pictures[0][90, 135], (177, 120, 50))
    assert near(pictures[0][30, 30], (100, 100, 100))
    (large,) = fitted([MASK], (192, 128))
    assert (large == MASK.repeat(2, 0).repeat(2, 1)).all()
    assert fitted([None], (192, 128)) == [None]
