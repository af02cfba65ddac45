"""Losses of masks. N objects, T frames, H height, W width. All are 0 or above; smaller is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tpo_head_mask import rle


def bce(logits_NHW: Tensor, masks_NHW: Tensor) -> Tensor:
    """Binary cross entropy, the mean over each mask's pixels, [N]."""
    return F.binary_cross_entropy_with_logits(logits_NHW, masks_NHW, reduction="none").flatten(1).mean(1)


def focal(logits_NHW: Tensor, masks_NHW: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017) with SAM 2's alpha and gamma, the mean over each mask's pixels, [N]."""
    entropy = F.binary_cross_entropy_with_logits(logits_NHW, masks_NHW, reduction="none")
    wrong = torch.where(masks_NHW > 0.5, 1 - logits_NHW.sigmoid(), logits_NHW.sigmoid())
    weight = torch.where(masks_NHW > 0.5, alpha, 1 - alpha)
    return (weight * wrong**gamma * entropy).flatten(1).mean(1)


def dice(logits_NHW: Tensor, masks_NHW: Tensor) -> Tensor:
    """1 - Dice coefficient of the probabilities (Milletari et al., 3DV 2016), with 1 added above and below, [N]."""
    predicted, true = logits_NHW.sigmoid().flatten(1), masks_NHW.flatten(1)
    return 1 - (2 * (predicted * true).sum(1) + 1) / (predicted.sum(1) + true.sum(1) + 1)


def overlap(logits_NHW: Tensor, masks_NHW: Tensor) -> Tensor:
    """Overlap (IoU) of the masks that the logits mean with the true ones, [N], without a gradient."""
    predicted, true = logits_NHW.detach().flatten(1) > 0, masks_NHW.flatten(1) > 0.5
    union = (predicted | true).sum(1)
    return (predicted & true).sum(1) / union.clamp(min=1)


WEIGHTS = {"bce": (2.0, 0.5), "focal": (20.0, 1.0)}
"""Of the pixels' loss and of dice: as LISA (Lai et al., CVPR 2024), and as SAM 2 (Ravi et al., 2024) trains."""


def pixel_losses(
    kind: str, outputs: dict[str, Tensor], masks: Sequence[Sequence[Any]], side: int, *, with_iou: bool
) -> dict[str, Tensor]:
    """Sums over targets of means over their frames: `loss_mask_<kind>` and `loss_mask_dice`, of frames that have the
    object, at `side` x `side`; `loss_mask_object`, cross entropy of the object score, of all; and `with_iou`
    `loss_mask_iou`, how far SAM 2's guess of its overlap is off, of frames that have the object (as SAM 2 trains).

    `outputs` as of `MaskHead.forward`; `masks`, for each target its T masks [H, W], or none.
    """
    logits, scores, iou = outputs["mask_logits"], outputs["object_score_logits"], outputs["iou"]
    places = [(n, t, len(own)) for n, own in enumerate(masks) for t in range(len(own))]
    names = [f"loss_mask_{kind}", "loss_mask_dice", "loss_mask_object", *(["loss_mask_iou"] if with_iou else [])]
    connected = (logits.sum() + scores.sum() + iou.sum()) * 0
    if not places:
        return dict.fromkeys(names, connected)
    rows, frames, lengths = (torch.tensor(part, device=logits.device) for part in zip(*places, strict=True))
    true = torch.stack([_resized(masks[n][t], side, logits) for n, t, _ in places])
    predicted = F.interpolate(logits[rows, frames][:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]
    present = true.flatten(1).any(1).to(logits)
    share = 1 / lengths.to(logits)
    pixels = {"bce": bce, "focal": focal}[kind](predicted, true)
    weight, dice_weight = WEIGHTS[kind]
    object_loss = F.binary_cross_entropy_with_logits(scores[rows, frames], present, reduction="none")
    values = [weight * pixels * present, dice_weight * dice(predicted, true) * present, object_loss]
    if with_iou:
        values.append((iou[rows, frames] - overlap(predicted, true)).abs() * present)
    return {name: (value * share).sum() + connected for name, value in zip(names, values, strict=True)}


def _resized(mask: Any, side: int, like: Tensor) -> Tensor:
    """A mask [H, W] or RLE at side x side, 0 or 1."""
    if isinstance(mask, Mapping):
        mask = torch.from_numpy(rle.decode(mask, None))
    pixels = torch.as_tensor(mask).to(like)[None, None]
    return (F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)[0, 0] >= 0.5).to(like)


def prompt_loss(predicted_N3C: Tensor, wanted_N3C: Tensor) -> Tensor:
    """Sum over targets of the mean absolute difference of their prompt embeddings, as the authors' code."""
    return (predicted_N3C - wanted_N3C).abs().flatten(1).mean(1).sum()


def box_loss(predicted_N4: Tensor, true_N4: Tensor) -> Tensor:
    """Sum over targets of the mean absolute difference of their boxes' four numbers, as the authors' code."""
    return (predicted_N4 - true_N4).abs().mean(1).sum()
