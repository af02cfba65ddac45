"""IoU and recall of spans, and the head's accumulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tpo_head_temporal.metrics import TemporalMetrics
from tpo_head_temporal.span_metrics import average_precision, best_iou, pad, span_iou

import tpo_plugin as tpo


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0, 4], [2, 6], 1 / 3),
        ([0, 4], [0, 4], 1),
        ([0, 4], [4, 6], 0),
        ([0, 1], [8, 9], 0),
        ([3, 3], [0, 6], 0),
        ([3, 3], [3, 3], 0),
        ([4, 2], [0, 6], 0),
    ],
)
def test_span_iou(first: list[float], second: list[float], expected: float) -> None:
    pair = np.array([first, second], dtype=float)
    assert span_iou(pair[0], pair[1]) == pytest.approx(expected)
    assert span_iou(pair[1], pair[0]) == pytest.approx(expected)


def test_best_iou_ignores_padding() -> None:
    true, mask = pad([[[0, 2], [4, 8]], [[10, 12]]], 2)
    assert mask.tolist() == [[True, True], [True, False]]
    assert best_iou(np.array([[4.0, 6.0], [0.0, 1.0]]), true, mask).tolist() == [0.5, 0.0]


def test_average_precision_by_hand() -> None:
    true, mask = pad([[[0, 10], [20, 30]]], 2)
    spans = np.array([[[0, 10], [50, 60], [20, 30]]], dtype=float)
    # ranks: hit, miss, hit: half the recall at precision 1, half at 2/3
    found = average_precision(spans, np.array([[0.9, 0.8, 0.7]]), true, mask, [0.5])
    assert found.tolist() == [[pytest.approx(0.5 + 0.5 * 2 / 3)]]
    # by score, not in the order of the list; -inf is padding
    found = average_precision(spans, np.array([[0.9, -np.inf, 0.95]]), true, mask, [0.5])
    assert found.tolist() == [[1.0]]
    # a true span is found once
    twice = np.array([[[0, 10], [0, 10]]], dtype=float)
    assert average_precision(twice, np.array([[0.9, 0.8]]), true, mask, [0.5]).tolist() == [[0.5]]


def test_metrics_of_the_head() -> None:
    head: Any = None
    metrics = TemporalMetrics(head)
    assert metrics.compute() == {}
    metrics.update({"spans_s": torch.zeros(0, 5, 2)}, {"spans_s": []})
    assert metrics.compute() == {}
    outputs = {"spans_s": torch.tensor([[[0.0, 4.0], [9.0, 9.5]], [[1.0, 2.0], [0.0, 9.0]]], requires_grad=True)}
    metrics.update(outputs, {"spans_s": [torch.tensor([[6.0, 8.0], [0.0, 5.0]]), [[5.0, 6.0]]]})
    metrics.update({"spans_s": torch.tensor([[[0.0, 10.0]]]).bfloat16()}, {"spans_s": [torch.tensor([[0.0, 4.0]])]})
    assert metrics.compute() == {
        "R1@0.3": pytest.approx(2 / 3),
        "R1@0.5": pytest.approx(1 / 3),
        "R1@0.7": pytest.approx(1 / 3),
        "mIoU": pytest.approx((0.8 + 0 + 0.4) / 3),
    }


def test_a_missed_query_overlaps_nothing() -> None:
    metrics = TemporalMetrics(tpo.TaskHead())
    assert metrics.quality() is None
    metrics.update({"spans_s": torch.tensor([[[1.0, 3.0]]])}, {"spans_s": [[[1.0, 3.0]]]})
    assert metrics.missed({"spans_s": [[[0.0, 1.0]], [[2.0, 3.0], [4.0, 5.0]]]})
    assert metrics.quality() == pytest.approx(1 / 3)
    assert metrics.compute()["R1@0.7"] == pytest.approx(1 / 3)


def test_the_best_constant_span_is_one_of_the_true_ones() -> None:
    metrics = TemporalMetrics(tpo.TaskHead())
    assert metrics.constant() == {}
    metrics.update(
        {"spans_s": torch.zeros(2, 1, 2)}, {"spans_s": [[[0.0, 4.0]], torch.tensor([[1.0, 5.0], [8.0, 9.0]])]}
    )
    metrics.missed({"spans_s": [[[6.0, 9.0]]]})
    assert metrics.constant()["mIoU"] == pytest.approx((1 + 3 / 5) / 3)
    assert metrics.constant()["R1@0.5"] == pytest.approx(2 / 3)
