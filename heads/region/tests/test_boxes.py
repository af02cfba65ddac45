"""Boxes against slow formulas in plain Python, and against torchvision where it is installed."""

import pytest
import torch
from tpo_head_region.boxes import area, giou_loss, iou


def valid_boxes(num: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low, size = torch.rand(num, 2, generator=generator) * 0.7, torch.rand(num, 2, generator=generator) * 0.25 + 0.02
    return torch.cat((low, low + size), -1)


def slow_iou_giou(a: list[float], b: list[float]) -> tuple[float, float]:
    """By definition, from the areas of two valid boxes, their intersection and their hull."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return width * height / union, width * height / union - (hull - union) / hull


def test_iou_and_giou_by_their_definition():
    a, b = valid_boxes(200, seed=1), valid_boxes(200, seed=2)
    expected = torch.tensor(
        [slow_iou_giou(x, y) for x, y in zip(a.double().tolist(), b.double().tolist(), strict=True)]
    )
    assert (expected[:, 0] > 0).sum() > 20
    assert (expected[:, 0] == 0).sum() > 20
    torch.testing.assert_close(iou(a, b), expected[:, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(giou_loss(a, b), 1 - expected[:, 1], rtol=1e-4, atol=1e-6)


def test_giou_as_torchvision():
    ops = pytest.importorskip("torchvision.ops")
    a, b = valid_boxes(50, seed=3), valid_boxes(50, seed=4)
    torch.testing.assert_close(giou_loss(a, b), 1 - ops.generalized_box_iou(a, b).diagonal(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(iou(a, b), ops.box_iou(a, b).diagonal(), rtol=1e-5, atol=1e-6)


def test_known_values():
    unit, half = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 0.5, 1.0])
    assert area(half).item() == 0.5
    assert iou(unit, half).item() == 0.5
    assert giou_loss(half, unit).item() == 0.5
    assert giou_loss(unit, unit).item() == 0.0
    corner, far = torch.tensor([0.0, 0.0, 0.25, 0.25]), torch.tensor([0.75, 0.75, 1.0, 1.0])
    assert iou(corner, far).item() == 0.0
    assert giou_loss(corner, far).item() == 1 + 0.875


@pytest.mark.parametrize("inverted", [(0.6, 0.3, 0.4, 0.7), (0.3, 0.6, 0.7, 0.4), (0.9, 0.9, 0.1, 0.1)])
def test_an_inverted_box_has_no_area_and_is_pushed_back(inverted):
    true = torch.tensor([0.2, 0.2, 0.8, 0.8])
    box = torch.tensor(inverted, requires_grad=True)
    assert area(box).item() == 0
    assert iou(box, true).item() == 0
    value = giou_loss(box, true)
    value.backward()
    assert value.item() > 1  # worse than a box of no area in its place
    for low, high in ((0, 2), (1, 3)):
        if inverted[low] > inverted[high]:
            assert box.grad[low] > 0
            assert box.grad[high] < 0


def test_no_jump_where_a_box_turns_over():
    true = torch.tensor([0.2, 0.2, 0.8, 0.8])
    for box in ([0.5, 0.3, 0.5, 0.7], [0.9, 0.3, 0.9, 0.7], [0.1, 0.5, 0.9, 0.5]):
        side = 2 if box[0] == box[2] else 3
        above, below = torch.tensor(box), torch.tensor(box)
        above[side] += 1e-5
        below[side] -= 1e-5
        assert (giou_loss(above, true) - giou_loss(below, true)).abs().item() < 1e-3


def test_boxes_without_area_have_iou_zero_not_nan():
    point = torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert iou(point, point).item() == 0.0
