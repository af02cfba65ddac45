"""The baselines say what they should."""

import json

import numpy as np
import pytest
import torch
from tpo_shapes.baselines import (
    bare_record,
    baseline_record,
    best_constant_box,
    best_constant_span,
    iou,
    of_heads,
    span_iou,
    text_as_box,
    text_as_moments,
    text_record,
)
from tpo_shapes.moment_mlp import MomentMLP

import tpo_plugin as tpo


def test_iou_of_halves():
    assert np.isclose(iou(np.array([0, 0, 1, 1.0]), np.array([0, 0, 0.5, 1.0])), 0.5)
    assert iou(np.array([0, 0, 0.2, 0.2]), np.array([0.5, 0.5, 1, 1])) == 0


def test_best_constant_box_finds_a_cluster():
    boxes = np.array([[0.4, 0.4, 0.6, 0.6]] * 9 + [[0, 0, 0.2, 0.2]])
    assert (iou(best_constant_box(boxes), boxes) >= 0.5).mean() == 0.9


@pytest.fixture
def record():
    turns = [
        ("follow", "<image>\nfollow it.", "it is here <mask>"),
        ("given_colour", "what is in <region>?", "red, like <region> here"),
        ("moment", "when does it turn?", "at <temporal>"),
    ]
    lines = [{"from": who, "value": v} for _, *said in turns for who, v in zip(("human", "gpt"), said, strict=True)]
    return {
        "kinds": [kind for kind, *_ in turns],
        "conversations": lines,
        "tasks": [
            {"head": "mask", "masks": []},
            {"head": "region", "boxes": [[0, 0.1, 0.25, 1]]},
            {"head": "region", "boxes": [[0.5, 0.5, 0.6, 0.7]]},
            {"head": "temporal", "spans": [[0.25, 1.75]], "saliency": [1]},
        ],
    }


def test_a_record_of_the_baseline(record):
    before = json.dumps(record)
    plain = baseline_record(record)
    assert json.dumps(record) == before
    assert plain["kinds"] == ["given_colour", "moment"]
    assert [line["value"] for line in plain["conversations"]] == [
        "<image>\nwhat is in 0 10 25 100?",
        "red, like 50 50 60 70 here",
        "when does it turn?",
        "at <moment>",
    ]
    assert plain["tasks"] == [{"head": "moment", "spans": [[0.25, 1.75]], "saliency": [1]}]
    chat = {"kinds": ["count"], "conversations": record["conversations"][:2]}
    assert baseline_record(chat) == chat


def test_a_record_of_some_heads(record):
    before = json.dumps(record)
    moments = of_heads(record, ("temporal",))
    assert moments == {
        "kinds": ["moment"],
        "conversations": [
            {"from": "human", "value": "<image>\nwhen does it turn?"},
            {"from": "gpt", "value": "at <temporal>"},
        ],
        "tasks": record["tasks"][3:],
    }
    assert of_heads(record, ("region", "temporal", "mask")) == record
    assert of_heads(moments, ("region", "mask")) is None
    assert baseline_record(of_heads(record, ("mask",))) is None
    assert json.dumps(record) == before


def test_a_record_in_words_has_nothing_for_a_head(record):
    plain = text_record(record)
    assert "tasks" not in plain
    assert [line["value"] for line in plain["conversations"]][2:] == ["when does it turn?", "at 6 44"]
    assert text_record(of_heads(record, ("mask",))) is None


def test_numbers_become_moments():
    assert text_as_moments("at 6 44") == [[0.24, 1.76]]
    assert text_as_moments("at 12 38 62 75") == [[0.48, 1.52], [2.48, 3.0]]
    assert text_as_moments("at 12 38 62") == [[0.48, 1.52]]
    assert text_as_moments("at 12") == text_as_moments("at the top left") == text_as_moments("it is here 1 2 3 4") == []


def test_bare_answers_are_placeholders_alone():
    lines = [
        {"from": "human", "value": "<image>\nfollow the object in <mask>."},
        {"from": "gpt", "value": "it is here <mask>"},
        {"from": "human", "value": "what colour is the object in <region>?"},
        {"from": "gpt", "value": "red"},
        {"from": "human", "value": "when does it turn?"},
        {"from": "gpt", "value": "at <temporal>"},
    ]
    bare = bare_record({"conversations": lines, "tasks": []})
    assert [line["value"] for line in bare["conversations"][1::2]] == ["<mask>", "red", "<temporal>"]
    assert bare["conversations"][::2] == lines[::2]


def test_numbers_become_boxes():
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
