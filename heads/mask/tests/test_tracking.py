from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tpo_head_mask.tracking import TrackingScores, box_iou

import tpo_plugin as tpo

ABSENT = [np.nan] * 4
BOX = [10.0, 10.0, 30.0, 50.0]


def moved(dx: float, dy: float = 0.0) -> list[float]:
    return [BOX[0] + dx, BOX[1] + dy, BOX[2] + dx, BOX[3] + dy]


def score(predicted: list[Any], truth: list[Any], convention: str = "lasot", **options: Any) -> dict[str, float]:
    scores = TrackingScores(convention)
    scores.add("a", predicted, truth, **options)
    return scores.mean()


def test_overlap() -> None:
    boxes = np.array([BOX, BOX, BOX, BOX, BOX, ABSENT])
    others = np.array([BOX, moved(10), moved(100), [30, 10, 10, 50], ABSENT, ABSENT])
    assert box_iou(boxes, others).tolist() == pytest.approx([1, 1 / 3, 0, 0, 0, 0])


def test_lasot() -> None:
    # Overlaps 1 (the first frame is given), 1, 1/3, 0; centres off by 0, 0, 10 px = half a width, 0.
    result = score([ABSENT, BOX, moved(10), BOX], [BOX, BOX, BOX, ABSENT])
    # A threshold t of 0, 0.05, ..., 1 is passed by 1 > t: 20 of 21, by 1/3 > t: 7.
    assert result["success"] == pytest.approx(100 * (20 + 20 + 7) / 21 / 4)
    assert result["precision"] == pytest.approx(75)
    assert result["normalised_precision"] == pytest.approx(50)


def test_lasot_thresholds_include_their_value() -> None:
    assert score([BOX, moved(0, 20)], [BOX, BOX])["precision"] == 100
    assert score([BOX, moved(0, 20.01)], [BOX, BOX])["precision"] == 50
    assert score([BOX, moved(4)], [BOX, BOX])["normalised_precision"] == 100  # 4 of 20 pixels
    assert score([BOX, moved(0, 8)], [BOX, BOX])["normalised_precision"] == 100  # 8 of 40 pixels
    assert score([BOX, moved(4, 8)], [BOX, BOX])["normalised_precision"] == 50


def test_lasot_keeps_the_last_box_where_nothing_is_predicted() -> None:
    assert score([BOX, moved(10), ABSENT, [5, 5, 5, 9]], [BOX, moved(10), moved(10), moved(10)])["precision"] == 100
    assert score([ABSENT, ABSENT], [BOX, BOX])["precision"] == 100


def test_lasot_averages_sequences() -> None:
    scores = TrackingScores()
    scores.add("long", [BOX] * 9, [BOX] * 9)
    scores.add("short", [BOX, moved(100)], [BOX, BOX])
    assert scores.mean()["precision"] == pytest.approx((100 + 50) / 2)
    assert scores.sequences["short"]["precision"] == 50


def test_got10k() -> None:
    scores = TrackingScores("got10k")
    # The first frame and the absent one do not count; boxes end at the image's 40 x 60: then the third overlaps wholly.
    truth = [BOX, BOX, [30, 10, 70, 50], ABSENT]
    scores.add("a", [moved(90), BOX, [30, 10, 99, 50], ABSENT], truth, size=(60, 40))
    scores.add("b", [BOX, moved(10)], [BOX, BOX], size=(60, 60))
    result = scores.mean()
    assert result["ao"] == pytest.approx(100 * (1 + 1 + 1 / 3) / 3)
    assert result["sr50"] == pytest.approx(100 * 2 / 3)
    assert result["sr75"] == pytest.approx(100 * 2 / 3)
    assert result["success"] == pytest.approx(100 * (100 + 100 + 34) / 101 / 3)


def test_got10k_moves_boxes_into_the_image() -> None:
    boxes = [BOX, [-5, 10, 15, 50]], [BOX, [0, 10, 20, 50]]
    assert score(*boxes, "got10k", size=(60, 60))["ao"] == pytest.approx(100)


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(tpo.TPOError, match=r"convention is 'otb'; expected one of 'lasot', 'got10k'"):
        TrackingScores("otb")
    with pytest.raises(tpo.TPOError, match=r"a: predicted boxes are of shape \[2, 4\], true ones of \[1, 4\]"):
        score([BOX, BOX], [BOX])
    with pytest.raises(tpo.TPOError, match=r"a, frame 1: the true box \[30.0, 10.0, 10.0, 50.0\] has no area"):
        score([BOX, BOX], [BOX, [30, 10, 10, 50]])
    with pytest.raises(tpo.TPOError, match="a: the object is not in the first frame"):
        score([BOX, BOX], [ABSENT, BOX])
    with pytest.raises(tpo.TPOError, match=r"a: size \(height, width\) is missing"):
        score([BOX, BOX], [BOX, BOX], "got10k")
    with pytest.raises(tpo.TPOError, match="a: the object is in no frame after the first"):
        score([BOX, BOX], [BOX, ABSENT], "got10k", size=(60, 60))
    scores = TrackingScores()
    assert scores.mean() == {}
    scores.add("a", [BOX], [BOX])
    with pytest.raises(tpo.TPOError, match="a: was added before"):
        scores.add("a", [BOX], [BOX])
