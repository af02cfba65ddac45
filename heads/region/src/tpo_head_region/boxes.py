"""Arithmetic of boxes. `boxes_xyxy` is [..., 4]: x1, y1, x2, y2 in 0 to 1 of the image's width and height.

A predicted box is inverted where x1 > x2 or y1 > y2. Everywhere in here such a side has length 0: the box has no area,
and its IoU with any box is 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

OCTAVES = 6
"""Of the waves of `fourier_features`: the shortest is a sixteenth of the image long."""
NUM_FEATURES = 6 * (1 + 2 * OCTAVES)
"""That `fourier_features` makes of a box."""


def fourier_features(boxes_xyxy: Tensor) -> Tensor:
    """[..., 4] to [..., `NUM_FEATURES`]: x and y of both corners and of the centre, and their sines and cosines at
    frequencies that double, from half a wave across the image on.

    As in SAM's prompt encoder (Tancik et al., NeurIPS 2020), with fixed frequencies where that one draws them.
    """
    first, second = boxes_xyxy.split(2, dim=-1)
    places = torch.cat((boxes_xyxy, (first + second) / 2), -1) * 2 - 1
    angles = (places.unsqueeze(-1) * (math.pi / 2 * 2.0 ** torch.arange(OCTAVES, device=places.device))).flatten(-2)
    return torch.cat((places, angles.sin(), angles.cos()), -1)


def area(boxes_xyxy: Tensor) -> Tensor:
    """Area of each box, [...]; 0 for an inverted one."""
    return (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0).prod(-1)


def _intersection_union(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    intersection = area(torch.cat((low, high), -1))
    return intersection, area(a_xyxy) + area(b_xyxy) - intersection


def iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection over union of each pair, [...], 0 to 1; 0 where neither box has an area."""
    intersection, union = _intersection_union(a_xyxy, b_xyxy)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def giou_loss(predicted_xyxy: Tensor, true_xyxy: Tensor) -> Tensor:
    """1 - GIoU of each pair (Rezatofighi et al., CVPR 2019), [...], 0 to 2 for valid boxes. True boxes have an area.

    An inverted predicted box counts as well, and has a gradient: its IoU is 0, the hull spans all of its corners, and
    by how much it is inverted, (x1 - x2)+ + (y1 - y2)+, is added. So the loss has no jump where a box turns over, and
    pushes an inverted box back. (The authors' code leaves such boxes out of its mean, without a gradient.)
    """
    intersection, union = _intersection_union(predicted_xyxy, true_xyxy)
    low = torch.minimum(predicted_xyxy[..., :2], predicted_xyxy[..., 2:])
    high = torch.maximum(predicted_xyxy[..., :2], predicted_xyxy[..., 2:])
    hull = area(torch.cat((torch.minimum(low, true_xyxy[..., :2]), torch.maximum(high, true_xyxy[..., 2:])), -1))
    inverted = (predicted_xyxy[..., :2] - predicted_xyxy[..., 2:]).clamp(min=0).sum(-1)
    return 1 - intersection / union + (hull - union) / hull + inverted
