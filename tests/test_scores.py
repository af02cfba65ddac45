"""Average precision and calibration, by hand and against plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from tpo_plugin.scores import average_precision, calibration_error, overlap_metrics, reliability


def plain_average_precision(scores: list[float], hits: list[bool], num_targets: int) -> float:
    """COCO's rule in words: at each of 101 recalls the best precision of any list that reaches it."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    points = [
        (sum(hits[i] for i in order[:n]) / num_targets, sum(hits[i] for i in order[:n]) / n)
        for n in range(1, len(order) + 1)
    ]
    best = [max((p for recall, p in points if recall >= step / 100 - 1e-12), default=0.0) for step in range(101)]
    return sum(best) / 101


def test_average_precision_by_hand():
    # right, wrong, right of two: precision 1 up to recall 0.5 (51 of the 101), 2 / 3 beyond (50)
    found = average_precision(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True]), 2)
    assert found == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert average_precision(torch.zeros(0), torch.zeros(0, dtype=torch.bool), 3) == 0.0
    assert average_precision(torch.ones(2), torch.tensor([True, True]), 2) == 1.0
    assert average_precision(torch.ones(1), torch.tensor([True]), 4) == pytest.approx(26 / 101)  # recall 0.25 at most
    assert math.isnan(average_precision(torch.ones(1), torch.tensor([False]), 0))


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_the_plain_one(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(60, generator=generator)
    hits = torch.rand(60, generator=generator) < scores
    expected = plain_average_precision(scores.tolist(), hits.tolist(), 70)
    assert average_precision(scores, hits, 70) == pytest.approx(expected, abs=1e-12)


def test_precision_rises_with_a_better_order():
    hits = torch.tensor([True] * 5 + [False] * 5)
    right, wrong = torch.linspace(1, 0, 10), torch.linspace(0, 1, 10)
    assert average_precision(right, hits, 5) == 1.0
    assert average_precision(wrong, hits, 5) < 0.51


def test_calibration():
    scores, qualities = torch.tensor([0.05, 0.15, 0.95, 0.95]), torch.tensor([0.05, 0.35, 0.95, 0.55])
    assert reliability(scores, qualities) == [
        (pytest.approx(0.05), pytest.approx(0.05), 1),
        (pytest.approx(0.15), pytest.approx(0.35), 1),
        (pytest.approx(0.95), pytest.approx(0.75), 2),
    ]
    assert calibration_error(scores, qualities) == pytest.approx((0 + 0.2 + 2 * 0.2) / 4)
    assert calibration_error(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])) == 0.0
    assert math.isnan(calibration_error(torch.zeros(0), torch.zeros(0)))


def test_of_overlaps():
    found = overlap_metrics(torch.tensor([0.9, 0.6]), torch.tensor([0.72, 0.3]), 2)
    half = 51 / 101  # one of two, first
    assert found == pytest.approx({"ap@0.5": half, "ap": half * 5 / 10, "calibration_error": (0.18 + 0.3) / 2})
