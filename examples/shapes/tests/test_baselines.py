"""The baselines say what they should."""

import numpy as np
import pytest
import torch
from tpo_shapes.baselines import (
    best_constant_box,
    best_constant_span,
    iou,
    record_as_text,
    record_for_mlp,
    span_iou,
    spans_as_text,
    text_as_box,
    text_as_spans,
)
from tpo_shapes.moment_mlp import MomentMLP

import tpo_plugin as tpo


def test_iou_of_halves():
    assert np.isclose(iou(np.array([0, 0, 1, 1.0]), np.array([0, 0, 0.5, 1.0])), 0.5)
    assert iou(np.array([0, 0, 0.2, 0.2]), np.array([0.5, 0.5, 1, 1])) == 0


def test_best_constant_box_finds_a_cluster():
    boxes = np.array([[0.4, 0.4, 0.6, 0.6]] * 9 + [[0, 0, 0.2, 0.2]])
    assert (iou(best_constant_box(boxes), boxes) >= 0.5).mean() == 0.9


def test_boxes_become_numbers():
    record = {
        "conversations": [
            {"from": "human", "value": "<image>\nwhat is in <region>?"},
            {"from": "gpt", "value": "red, like <region> here"},
        ],
        "tasks": [
            {"head": "region", "boxes": [[0, 0.1, 0.25, 1]]},
            {"head": "region", "boxes": [[0.5, 0.5, 0.6, 0.7]]},
        ],
    }
    plain = record_as_text(record)
    assert "tasks" not in plain
    assert "tasks" in record
    assert [line["value"] for line in plain["conversations"]] == [
        "<image>\nwhat is in 0 10 25 100?",
        "red, like 50 50 60 70 here",
    ]
    assert text_as_box("it is here 50 50 60 70") == [0.5, 0.5, 0.6, 0.7]
    assert text_as_box("it is here 50 50 60") is None
    assert text_as_box("it turns at 6 44 63 94") is None


def test_overlap_of_moments_is_that_with_the_best():
    assert span_iou([1, 2], [[0, 0.5], [1.5, 3]]) == pytest.approx(0.25)
    assert span_iou([1, 2], [[2, 3]]) == 0
    assert span_iou([1, 2], [[1, 2], [0, 4]]) == 1


def test_best_constant_span_finds_a_cluster():
    found = best_constant_span([[[1, 2]]] * 9 + [[[3, 4]]])
    assert span_iou(found, [[1, 2]]) >= 0.5


def test_moments_become_numbers():
    record = {
        "conversations": [
            {"from": "human", "value": "<image>\nwhen does it turn?"},
            {"from": "gpt", "value": "it turns at <temporal>"},
        ],
        "tasks": [{"head": "temporal", "spans": [[0.25, 1.75], [2.5, 3.75]], "saliency": [1]}],
    }
    assert record_as_text(record)["conversations"][1]["value"] == "it turns at 6 44 62 94"
    assert text_as_spans("it turns at 6 44 62 94") == [[0.24, 1.76], [2.48, 3.76]]
    assert text_as_spans("it turns at 6 44 62") == [[0.24, 1.76]]
    assert text_as_spans("it is here 50 50 60 70") == []
    assert spans_as_text([[0, 4]]) == "0 100"
    mlp = record_for_mlp(record)
    assert (mlp["conversations"][1]["value"], mlp["tasks"][0]["head"]) == ("it turns at <moment>", "moment")
    assert record["tasks"][0]["head"] == "temporal"


def test_the_mlp_learns_the_moment_that_fits_best():
    torch.manual_seed(0)
    head = MomentMLP(tpo.HeadConfig(), 8)
    e_ND, targets = torch.randn(2, 8), {"spans_s": [torch.tensor([[0.5, 1.5]]), torch.tensor([[0.0, 1.0], [2.0, 3.5]])]}
    optimizer = torch.optim.Adam(head.parameters(), 0.01)
    for _ in range(500):
        loss = head.loss(head(e_ND), targets, 2)["loss_moment"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = [value["spans_s"][0].tolist() for value in head.postprocess(head(e_ND))]
    assert all(span_iou(span, true.tolist()) > 0.9 for span, true in zip(found, targets["spans_s"], strict=True))
    assert head.loss(head(e_ND[:0]), {"spans_s": []}, 1)["loss_moment"].item() == 0
