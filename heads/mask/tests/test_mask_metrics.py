from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tpo_head_mask import rle
from tpo_head_mask.codec import MaskCodec
from tpo_head_mask.config import MaskConfig
from tpo_head_mask.metrics import AnswerScores, IoUScores, MaskMetrics

import tpo_plugin as tpo


def square(*corners: int) -> np.ndarray:
    mask = np.zeros((40, 60), dtype=bool)
    y1, x1, y2, x2 = corners
    mask[y1:y2, x1:x2] = True
    return mask


EMPTY = square(0, 0, 0, 0)


def test_image_scores() -> None:
    scores = IoUScores()
    assert scores.mean() == {}
    scores.add(square(0, 0, 10, 10), square(0, 0, 10, 20))  # 100 of 200
    scores.add(square(0, 0, 30, 40), square(0, 0, 30, 40))  # 1200 of 1200
    scores.add(EMPTY, EMPTY)
    assert scores.mean() == pytest.approx({"gIoU": (0.5 + 1 + 1) / 3, "cIoU": 1300 / 1400})
    scores.add(EMPTY, square(0, 0, 10, 10))
    assert scores.mean() == pytest.approx({"gIoU": 2.5 / 4, "cIoU": 1300 / 1500})
    with pytest.raises(tpo.TPOError, match=r"is of shape \(2, 2\), the true one of \(3, 3\)"):
        scores.add(np.ones((2, 2)), np.ones((3, 3)))


class Head(tpo.TaskHead):
    """Its outputs are its values."""

    def postprocess(self, outputs: dict[str, Any]) -> Any:
        return outputs["values"]


def test_a_heads_metrics() -> None:
    truth = square(10, 10, 20, 30)
    metrics = MaskMetrics(Head())
    assert metrics.compute() == {}
    values = [
        {"masks": [rle.encode(truth), rle.encode(EMPTY)]},
        {"masks": [square(10, 10, 20, 20)]},
        {"masks": [rle.encode(truth)]},
    ]
    targets = {
        "masks": [[rle.encode(truth), rle.encode(truth)], torch.tensor(truth)[None], []],
        "boxes_xyxy": torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [10 / 60, 10 / 40, 50 / 60, 20 / 40]]),
    }
    metrics.update({"values": values}, targets)
    result = metrics.compute()
    assert metrics.num_targets == 3
    assert result["J"] == pytest.approx((0.5 + 0.5) / 2)
    assert result["gIoU"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert result["cIoU"] == pytest.approx((200 + 0 + 100) / 600)
    assert result["box_iou"] == pytest.approx(0.5)
    # Of the second object one side of four agrees not: boundary pixels within 1 of each other.
    assert 0.5 < result["F"] < 1
    assert result["J&F"] == pytest.approx((result["J"] + result["F"]) / 2)


def test_a_track_is_measured_at_the_times_of_the_truth() -> None:
    truth, half = square(10, 10, 20, 30), square(10, 10, 20, 20)
    value = {"masks": [rle.encode(mask) for mask in (EMPTY, truth, half, truth)], "times": [0.0, 0.5, 1.0, 1.5]}
    metrics = MaskMetrics(Head())
    metrics.update({"values": [value]}, {"masks": [[truth, truth]], "times": [[0.5, 1.2]]})
    assert metrics.compute()["J"] == pytest.approx((1 + 0.5) / 2)
    late = {"masks": value["masks"][2:], "times": value["times"][2:]}
    metrics = MaskMetrics(Head())
    metrics.update({"values": [late]}, {"masks": [[truth, truth]], "times": [[0.5, 1.5]]})
    assert metrics.compute()["J"] == pytest.approx((0 + 1) / 2)


def test_what_is_missed_is_an_empty_mask() -> None:
    truth = square(10, 10, 20, 30)
    metrics = MaskMetrics(Head())
    metrics.update({"values": [{"masks": [truth]}]}, {"masks": [[truth]]})
    assert metrics.quality() == 1.0
    assert metrics.missed({"masks": [[truth, EMPTY]], "times": [[0.0, 1.0]]})
    assert metrics.compute() == pytest.approx({"J&F": 0.75, "J": 0.75, "F": 0.75, "gIoU": 2 / 3, "cIoU": 0.5})
    boxes = MaskMetrics(Head())
    assert boxes.missed({"masks": [[]], "boxes_xyxy": torch.tensor([[0.0, 0, 1, 1]])})
    assert boxes.compute() == {"box_iou": 0.0}
    assert boxes.quality() == 0.0


def test_the_truth_has_all_frames_whatever_is_trained_on() -> None:
    mask = rle.encode(square(10, 10, 20, 30))
    task = {"head": "mask", "masks": [None, mask, mask], "times": [0.0, 0.5, 1.0]}
    codec = MaskCodec(MaskConfig(clip_frames=1))
    assert [len(masks) for masks in codec.collate_targets([task])["masks"]] == [1]
    truth = codec.collate_truth([task])
    assert [int(each.sum()) for each in truth["masks"][0]] == [0, 200, 200]
    assert truth["times"] == [[0.0, 0.5, 1.0]]


def test_another_number_of_frames_is_refused() -> None:
    with pytest.raises(tpo.TPOError, match="1 masks were predicted for 2 frames"):
        MaskMetrics(Head()).add([EMPTY], [EMPTY, EMPTY])


def task(*masks: np.ndarray | None, times: list[float] | None = None) -> dict[str, Any]:
    encoded = [None if mask is None else rle.encode(mask) for mask in masks]
    return {"head": "mask", "masks": encoded} | ({} if times is None else {"times": times})


def test_an_answer_is_the_union_of_its_masks_against_that_of_all_objects_meant() -> None:
    times = [0.0, 0.5, 1.0]
    left, right = square(10, 10, 20, 20), square(10, 40, 20, 50)
    tasks = [task(None, left, left, times=times), task(None, None, right, times=times)]
    value = {"masks": [rle.encode(mask) for mask in (EMPTY, left, left)], "times": times}
    late = {"masks": [rle.encode(right)], "times": [0.999]}
    perfect, one_object, nothing = AnswerScores(), AnswerScores(), AnswerScores()
    assert perfect.mean() == {}
    perfect.add([value, late], tasks)
    assert perfect.mean() == {"J&F": 1.0, "J": 1.0, "F": 1.0}
    one_object.add([value], tasks)  # of the last frame's two objects one: J 1/2, F 2/3; a frame of nothing counts
    assert one_object.mean() == pytest.approx({"J&F": 31 / 36, "J": 5 / 6, "F": 8 / 9})
    nothing.add([], tasks)
    assert nothing.mean() == pytest.approx({"J&F": 1 / 3, "J": 1 / 3, "F": 1 / 3})
    nothing.add([value, late], tasks)
    assert nothing.mean() == pytest.approx({"J&F": 2 / 3, "J": 2 / 3, "F": 2 / 3})


def test_an_answer_about_an_image() -> None:
    scores = AnswerScores()
    scores.add([{"masks": [rle.encode(square(0, 0, 10, 10))], "times": [0.0]}], [task(square(0, 0, 10, 20))])
    assert scores.mean()["J"] == pytest.approx(0.5)
    with pytest.raises(tpo.TPOError, match="all of them the same 'times'"):
        scores.add([], [task(EMPTY, times=[0.0]), task(EMPTY, times=[1.0])])


def test_the_best_constant_mask_is_what_most_masks_cover() -> None:
    metrics = MaskMetrics(Head())
    assert metrics.constant() == {}
    left, all_but_a_corner = np.zeros((64, 64), bool), np.ones((64, 64), bool)
    left[:, :32] = True
    all_but_a_corner[:32, 32:] = False
    for truth in (left, left, all_but_a_corner):
        metrics.add([np.zeros_like(truth)], [truth])
    assert metrics.constant() == {"gIoU": pytest.approx((1 + 1 + 2 / 3) / 3)}
