"""Answers in the words that lmms-eval's scorers read; lmms-eval itself is not needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from pycocotools.mask import toBbox

from tpo_plugin.asking import Answer
from tpo_plugin.data import Sample


def in_words(answer: Answer, sample: Sample) -> str:
    """An answer as the scorers of refcoco_grounding, of SaCo, of timelens and of Charades-STA read it.

    Of an answer with several kinds of predictions, the first of boxes, masks and spans. Masks without a pixel, of what
    is not seen, are left out.
    """
    boxes, masks, spans = [], [], []
    for prediction in answer.predictions:
        value = prediction.value
        if _boxes(value) is not None and sample.images:
            width, height = sample.images[0].size
            pixels = _boxes(prediction.to_units(width=width, height=height))
            boxes += [[round(number, 2) for number in box] for box in pixels.reshape(-1, 4).tolist()]
        elif isinstance(value, dict) and value.get("masks") and sample.images:
            masks.append((value["masks"][0], value["score"]))
        elif isinstance(value, dict) and len(value.get("spans_s", ())):
            spans.append(value["spans_s"][0].tolist())
    if boxes:
        return json.dumps([{"bbox_2d": box} for box in boxes])
    if masks:
        return _of_masks(masks)
    if spans:
        return f"The event happens in {spans[0][0]:.2f} - {spans[0][1]:.2f} seconds."
    return answer.text


def _boxes(value: Any) -> torch.Tensor | None:
    """The boxes [..., 4] of a value: it is them, as a region's is, or it holds them, as that of a set does."""
    boxes = value.get("boxes_xyxy") if isinstance(value, dict) else value
    return boxes if isinstance(boxes, torch.Tensor) and boxes.shape[-1:] == (4,) else None


def _of_masks(masks: Sequence[tuple[dict[str, Any], float]]) -> str:
    """Masks (COCO RLE) with their scores, as `lmms_eval.models.simple.sam3` writes them: the boxes around them in 0 to
    1 of the picture's sides."""
    found: dict[str, list[Any]] = {"masks": [], "boxes": [], "scores": []}
    for rle, score in masks:
        x, y, width, height = toBbox(rle).tolist()
        if width and height:
            sides = rle["size"][::-1] * 2
            ends = [end / side for end, side in zip((x, y, x + width, y + height), sides, strict=True)]
            found["masks"].append(rle)
            found["boxes"].append(dict(zip(("x_min", "y_min", "x_max", "y_max"), ends, strict=True)))
            found["scores"].append(score)
    return json.dumps(found)
