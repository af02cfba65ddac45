"""The baselines say what they should."""

import numpy as np
from tpo_shapes.baselines import best_constant_box, iou, record_as_text, text_as_box


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
