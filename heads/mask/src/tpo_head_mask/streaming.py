"""Whole videos through SAM 2, frame by frame: what stays in memory is its memory bank and the masks as RLE."""

from __future__ import annotations

from collections.abc import Sequence
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
    expects of its first mask, 0 to 1; `source`: path of a video, else None; the head's `to_json` leaves it out.
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


def track_rows(
    backend: Backend, media: Sequence[Medium], prompts_N3C: Tensor, rows: Sequence[int]
) -> list[dict[str, Any]]:
    """As `track`, for objects of several media: `rows` says which medium each of the N belongs to."""
    values: list[dict[str, Any]] = [{} for _ in rows]
    for row in sorted(set(rows)):
        tokens = [number for number, own in enumerate(rows) if own == row]
        for number, value in zip(tokens, track(backend, media[row], prompts_N3C[tokens]), strict=True):
            values[number] = value
    return values


def with_given_boxes(backend: Backend, prompts_N3C: Tensor, media: Sequence[Medium], rows: Sequence[int]) -> Tensor:
    """The k-th prompt of a row becomes SAM 2's own embedding of its question's k-th box, where there is one."""
    left = {row: iter(media[row].boxes_xyxy) for row in set(rows)}
    boxes = [(number, box) for number, row in enumerate(rows) if (box := next(left[row], None)) is not None]
    if not boxes:
        return prompts_N3C
    tokens, given = zip(*boxes, strict=True)
    embedded = backend.embed_boxes(torch.tensor(given, device=prompts_N3C.device))
    return prompts_N3C.index_copy(0, torch.tensor(tokens, device=prompts_N3C.device), embedded.to(prompts_N3C))


def visible_masks(decoded: Decoded, height: int, width: int) -> Tensor:
    """Masks of one frame at a size, bool [N, height, width] on the CPU; empty where the object score is at most 0."""
    logits = F.interpolate(decoded.mask_logits, (height, width), mode="bilinear", align_corners=False)[:, 0]
    return ((logits > 0) & (decoded.object_score_logits > 0)[:, None, None]).cpu()


def decoded_values(outputs: dict[str, Tensor], scores: Tensor) -> list[dict[str, Any]]:
    """As `track`, of what the head decoded in training or evaluation, without `times` and `source`; `scores` [N]."""
    values = []
    shapes = torch.cat([outputs["num_frames"][:, None], outputs["sizes"]], 1).int().tolist()
    for number, (frames, height, width) in enumerate(shapes):
        logits = outputs["mask_logits"][number, :frames, None]
        present = outputs["object_score_logits"][number, :frames]
        shown = visible_masks(Decoded(logits, present[:, None], present, logits), height, width)
        values.append(
            {
                "masks": [rle.encode(mask.numpy()) for mask in shown],
                "scores": present.sigmoid().tolist(),
                "score": scores[number].item(),
            }
        )
    return values
