"""Published scorers of moments, on examples worked out by hand or by the published code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tpo_head_temporal.benchmarks import activitynet, benchmarks, next_gqa, recall

import tpo_plugin as tpo


def test_a_half_is_a_half_whatever_the_last_bit_says() -> None:
    predicted, truth = [[[24.3, 27.35]]], [[[24.3, 30.4]]]  # 0.5000000000000003 in floating-point numbers
    assert recall(predicted, truth, n=[1], m=[0.5])["R@1, IoU=0.5"] == 100
    assert recall(predicted, truth, n=[1], m=[0.5], strict=True)["R@1, IoU=0.5"] == 0
    below = [[[0.1, 0.2]]], [[[0.1, 0.3]]]  # 0.49999999999999994
    assert recall(*below, n=[1], m=[0.5])["R@1, IoU=0.5"] == 100
    assert recall(*below, n=[1], m=[0.5], strict=True)["R@1, IoU=0.5"] == 0


def test_recall_of_the_first_spans() -> None:
    predicted = [[[0.0, 1.0], [2.0, 6.0]], [[10.0, 14.0]], []]
    truth = [[[2.0, 6.0]], [[10.0, 14.0], [20.0, 30.0]], [[0.0, 5.0]]]
    found = recall(predicted, truth, n=[1, 2])
    assert found["R@1, IoU=0.5"] == pytest.approx(100 / 3)
    assert found["R@2, IoU=0.7"] == pytest.approx(200 / 3)
    assert found["mIoU"] == pytest.approx(100 / 3)  # of the first span alone
    assert (found["queries"], found["missing"]) == (3, 1)
    assert recall([[[0, 24], [24, 30]]], [[[24, 30.4]]], n=[1])["mIoU"] == 0
    assert recall([[[24, 30]]], [[[24.3, 30.4]]], n=[1])["mIoU"] == pytest.approx(89.06, abs=0.01)
    with pytest.raises(tpo.TPOError, match="1 predictions were given for 2 true ones"):
        recall([[]], [[[0, 1]], [[0, 1]]])


def test_activitynet_cuts_true_spans_to_the_video() -> None:
    found = activitynet([[[0.0, 10.0]], [[0.0, 1.0]]], [[-2.0, 20.0], [30.0, 40.0]], [10.0, 25.0])
    assert (found["R@1, IoU=0.7"], found["mIoU"]) == (100, 100)
    assert (found["queries"], found["left_out"]) == (1, 1)


def test_next_gqa() -> None:
    truth = [[[2.0, 6.0]], [[10.0, 14.0], [16.0, 18.0]], [[0.0, 5.0]]]
    found = next_gqa([[4.0, 8.0], [11.0, 13.0], None], truth, [True, True, True])
    named = ("Acc@GQA", "mIoP", "mIoU", "TIoU@0.5")
    assert [round(found[name], 1) for name in named] == [100.0, 75.0, 41.7, 50.0]
    assert [round(found[f"{name} over all"], 1) for name in named] == [66.7, 50.0, 27.8, 33.3]
    assert found["coverage"] == pytest.approx(200 / 3)
    assert next_gqa([[4.0, 8.0]], truth[:1], [False])["Acc@GQA"] == 0


def test_next_gqa_of_an_instant() -> None:
    found = next_gqa([[3.0, 3.0]], [[[2.0, 6.0]]], [True])
    assert (found["Acc@GQA"], found["mIoP"], found["mIoU"]) == (100, 100, 0)
    assert next_gqa([[7.0, 7.0]], [[[2.0, 6.0]]], [True])["mIoP"] == 0
    assert next_gqa([[8.0, 9.0]], [[[2.0, 6.0]]], [True])["mIoP"] == 0


def answer(spans: list[list[float]], wanted: list[list[float]], **more: Any) -> tpo.HeadAnswer:
    named: dict[str, Any] = {"question": "when?", "text": "he runs", "reference": "he runs", "duration_s": 10.0}
    return tpo.HeadAnswer(
        values=[{"spans_s": torch.tensor(spans)}] if spans else [],
        scores=[0.9] if spans else [],
        tasks=[{"head": "temporal", "spans": wanted}] if wanted else [],
        **named | more,
    )


def test_answers_are_scored() -> None:
    scorers = benchmarks()
    answers = [
        answer([[0.0, 4.0], [5.0, 6.0]], [[0.0, 4.0]]),
        answer([], [[0.0, 4.0]]),
        answer([[5.0, 10.0]], [[5.0, 20.0]], text="he walks"),
        answer([], []),
    ]
    charades = scorers["charades"].score(answers)
    assert charades["R@1, IoU=0.5"] == pytest.approx(100 / 3)
    assert (charades["queries"], charades["missing"]) == (3, 1)
    assert scorers["activitynet"].score(answers)["R@1, IoU=0.5"] == pytest.approx(200 / 3)
    gqa = scorers["nextgqa"].score(answers)
    assert (gqa["Acc@GQA"], gqa["Acc@GQA over all"]) == (50, pytest.approx(100 / 3))
