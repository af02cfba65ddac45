"""Published scorers of whole answers, on examples worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tpo_head_mask import rle
from tpo_head_mask.benchmarks import benchmarks, gres
from tpo_head_mask.metrics import IoUScores

import tpo_plugin as tpo


def strip(width: int, start: int = 0) -> np.ndarray:
    mask = np.zeros((10, 20), dtype=bool)
    mask[:, start : start + width] = True
    return mask


def test_reason_seg() -> None:
    scores = IoUScores()
    scores.add(strip(5), strip(10))  # 50 / 100
    scores.add(strip(1), strip(1))  # 10 / 10
    assert scores.mean() == pytest.approx({"gIoU": 0.75, "cIoU": 60 / 110})
    ignoring = IoUScores()
    ignoring.add(strip(10), strip(5), ignored=strip(5, 5))
    assert ignoring.mean() == {"gIoU": 1.0, "cIoU": 1.0}


def test_gres() -> None:
    found = gres([strip(5), None, strip(2), None], [strip(10), strip(10), None, None])
    assert found["gIoU"] == pytest.approx((0.5 + 0 + 0 + 1) / 4)
    assert found["cIoU"] == pytest.approx(50 / (100 + 100 + 20))
    assert (found["T-acc"], found["N-acc"], found["Pr@0.7"]) == (0.5, 0.5, 0.0)
    assert gres([strip(7)], [strip(10)])["Pr@0.7"] == 1.0
    assert gres([None], [None]) == {"gIoU": 1.0, "cIoU": 0.0, "samples": 1, "N-acc": 1.0}
    with pytest.raises(tpo.TPOError, match=r"the predicted mask is of shape \(1, 1\), the true one of \(10, 20\)"):
        gres([np.ones((1, 1))], [strip(10)])


def answer(masks: list[np.ndarray] | None, task: dict[str, Any] | None, **more: Any) -> tpo.HeadAnswer:
    times = [0.5 * k for k in range(len(masks or ()))]
    named: dict[str, Any] = {"question": "it?", "text": "here", "reference": "here", "width": 20, "height": 10}
    return tpo.HeadAnswer(
        values=[] if masks is None else [{"masks": [rle.encode(mask) for mask in masks], "times": times}],
        scores=[] if masks is None else [0.9],
        tasks=[] if task is None else [{"head": "mask", **task}],
        **named | more,
    )


def test_answers_about_pictures() -> None:
    answers = [
        answer([strip(5)], {"masks": [rle.encode(strip(10))]}),
        answer(None, {"masks": [rle.encode(strip(10))]}),
        answer(None, None),
    ]
    scorers = benchmarks()
    assert scorers["reasonseg"].score(answers) == pytest.approx({"gIoU": 0.25, "cIoU": 0.25, "pictures": 2})
    found = scorers["gres"].score(answers)
    assert (found["gIoU"], found["T-acc"], found["N-acc"]) == (0.5, 0.5, 1.0)
    assert (found["targeted"], found["untargeted"]) == (2, 1)
    assert "without any task is a sample without a target" in scorers["gres"].convention


def test_mevis_counts_frames_without_the_object() -> None:
    """Five frames, the object in the fourth and fifth, half of it found there, nothing elsewhere: J is 0.8."""
    nothing = strip(0)
    task = {"masks": [None, None, None, *[rle.encode(strip(10))] * 2], "times": [0.5 * k for k in range(5)]}
    found = benchmarks()["mevis"].score([answer([nothing] * 3 + [strip(5)] * 2, task), answer(None, None)])
    assert found["J"] == pytest.approx(0.8)
    assert found["expressions"] == 1


def test_lasot() -> None:
    """Overlaps of 1, 0.5 and 0.8, and a frame without the object."""
    boxes = [[0.0, 0.0, 0.5, 1.0]] * 3
    task = {"boxes": [*boxes, None], "times": [0.0, 0.5, 1.0, 1.5]}
    found = benchmarks()["lasot"].score([answer([strip(1), strip(5), strip(8), strip(20)], task)])
    assert found["success"] == pytest.approx(100 * (20 + 10 + 16) / (4 * 21))
    without = benchmarks()["lasot"].score(
        [answer([strip(1), strip(5), strip(8)], {"boxes": boxes, "times": [0, 0.5, 1]})]
    )
    assert without["success"] == pytest.approx(100 * (20 + 10 + 16) / (3 * 21))
    assert without["sequences"] == 1
    whole = {"boxes": boxes, "times": [0.0, 0.5, 1.0]}
    half = benchmarks()["lasot"].score([answer(None, whole), answer([strip(10)] * 3, whole)])
    assert half["success"] == pytest.approx(50 * 20 / 21)
    assert (half["precision"], half["sequences"], half["missing"]) == (50, 2, 1)
    assert benchmarks()["lasot"].score([answer(None, whole)])["success"] == 0


def test_got10k() -> None:
    task = {"boxes": [[0.0, 0.0, 0.5, 1.0]] * 4, "times": [0.0, 0.5, 1.0, 1.5]}
    found = benchmarks()["got10k"].score([answer([strip(1), strip(10), strip(5), strip(10)], task)])
    assert (found["ao"], found["sr50"]) == pytest.approx((100 * 2.5 / 3, 100 * 2 / 3))
    nothing = benchmarks()["got10k"].score([answer(None, task)])
    assert (nothing["ao"], nothing["missing"]) == (0, 1)
    with pytest.raises(tpo.TPOError, match="'it\\?' wants masks; expected 'boxes', for a scorer of tracks"):
        benchmarks()["got10k"].score([answer(None, {"masks": [rle.encode(strip(10))]})])
