"""Whole videos through SAM 2, frame by frame: what stays in memory is its memory bank and the masks as RLE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tpo_head_mask import rle
from tpo_head_mask.backends.base import Backend, Decoded
from tpo_head_mask.inputs import Medium, to_square


@torch.no_grad()
def track(backend: Backend, medium: Medium, prompts_N3C: Tensor) -> list[dict[str, Any]]:
    """N objects through a medium, all of them prompted on its first frame. For each object:

    `masks`: COCO RLE for each frame, at the medium's size, empty where the object is not seen; `times`: seconds;
    `scores`: probability that the object is in the frame; `score`: the first of them times the overlap that SAM 2
    expects of its first mask, 0 to 1; `source`: path of a video, else None.
    """
    results: list[dict[str, Any]] = [
        {"masks": [], "times": [], "scores": [], "score": 0.0, "source": medium.video} for _ in range(len(prompts_N3C))
    ]
    tracker = backend.start(prompts_N3C)
    for time_s, pixels in medium.frames():
        square = to_square(pixels, backend.architecture.image_size)[None].to(prompts_N3C.device)
        decoded = tracker.step(backend.encode(square))
        shown = visible_masks(decoded, pixels.shape[0], pixels.shape[1])
        scores = zip(decoded.object_score_logits.sigmoid().tolist(), decoded.iou[:, 0].tolist(), strict=True)
        for result, mask, (probability, expected) in zip(results, shown, scores, strict=True):
            if not result["masks"]:
                result["score"] = probability * min(max(expected, 0.0), 1.0)
            result["masks"].append(rle.encode(mask.numpy()))
            result["times"].append(time_s)
            result["scores"].append(probability)
    return results


def visible_masks(decoded: Decoded, height: int, width: int) -> Tensor:
    """Masks of one frame at a size, bool [N, height, width] on the CPU; empty where the object score is at most 0."""
    logits = F.interpolate(decoded.mask_logits, (height, width), mode="bilinear", align_corners=False)[:, 0]
    return ((logits > 0) & (decoded.object_score_logits > 0)[:, None, None]).cpu()
