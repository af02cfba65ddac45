"""What the region head is compared with: the best constant box, and boxes written as words of the answer.

N boxes; all boxes are xyxy, 0 to 1.
"""

from __future__ import annotations

import copy
import itertools
import re

import numpy as np

from tpo_shapes.questions import PLACEHOLDER


def iou(boxes_xyxy: np.ndarray, others_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes that broadcast against each other, [..., 4] to [...]."""
    low = np.maximum(boxes_xyxy[..., :2], others_xyxy[..., :2])
    high = np.minimum(boxes_xyxy[..., 2:], others_xyxy[..., 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [(b[..., 2:] - b[..., :2]).clip(0).prod(-1) for b in (boxes_xyxy, others_xyxy)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-9)


def best_constant_box(boxes_xyxy: np.ndarray, steps: int = 17) -> np.ndarray:
    """The square on a grid of centres and sizes that is right (IoU at least 0.5) for most of the given [N, 4] boxes."""
    places = np.linspace(0.1, 0.9, steps)
    sides = np.linspace(0.2, 0.9, steps)
    candidates = np.array(
        [(x - s / 2, y - s / 2, x + s / 2, y + s / 2) for x, y, s in itertools.product(places, places, sides)]
    ).clip(0, 1)
    hits = np.array([(iou(candidate, boxes_xyxy) >= 0.5).mean() for candidate in candidates])
    return candidates[hits.argmax()]


def box_as_text(box_xyxy: list[float]) -> str:
    """Four whole numbers, percent of the picture's sides."""
    return " ".join(str(round(100 * value)) for value in box_xyxy)


def text_as_box(text: str) -> list[float] | None:
    """The first four numbers of an answer as a box, None where there are fewer."""
    numbers = re.findall(r"\d+", text)
    return [int(number) / 100 for number in numbers[:4]] if len(numbers) >= 4 else None


def record_as_text(record: dict) -> dict:
    """A record without tasks: each placeholder, given or wanted, becomes the numbers of its box."""
    plain = copy.deepcopy(record)
    tasks = iter(plain.pop("tasks", []))
    for line in plain["conversations"]:
        pieces = line["value"].split(PLACEHOLDER)
        filled = [box_as_text(next(tasks)["boxes"][0]) for _ in pieces[1:]]
        line["value"] = pieces[0] + "".join(box + piece for box, piece in zip(filled, pieces[1:], strict=True))
    return plain
