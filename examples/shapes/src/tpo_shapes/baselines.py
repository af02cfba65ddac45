"""What the heads are compared with: the best constant box, and boxes written as words of the conversation.

N boxes; all boxes are xyxy, 0 to 1.
"""

from __future__ import annotations

import copy
import itertools
import re

import numpy as np

from tpo_shapes.questions import MASKS, PLACEHOLDER


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
    """The four numbers behind the word "here" as a box, None where there are fewer."""
    found = re.search(r"here((?: \d+){4})", text)
    return [int(number) / 100 for number in found[1].split()] if found else None


def without_masks(record: dict) -> dict:
    """The record without its questions about masks, which no baseline answers."""
    lines, kinds = record["conversations"], record["kinds"]
    kept = [index for index, kind in enumerate(kinds) if kind not in MASKS]
    conversations = [dict(line) for index in kept for line in lines[2 * index : 2 * index + 2]]
    conversations[0]["value"] = "<image>\n" + conversations[0]["value"].removeprefix("<image>\n")
    plain = {**record, "conversations": conversations, "kinds": [kinds[index] for index in kept]}
    if "tasks" in record:
        plain["tasks"] = [task for task in record["tasks"] if task["head"] != "mask"]
    return plain


def record_as_text(record: dict) -> dict:
    """A record without tasks: each placeholder, given or wanted, becomes the numbers of its box."""
    plain = copy.deepcopy(record)
    tasks = iter(plain.pop("tasks", []))
    for line in plain["conversations"]:
        line["value"] = re.sub(PLACEHOLDER, lambda _: box_as_text(next(tasks)["boxes"][0]), line["value"])
    return plain
