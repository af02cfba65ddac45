"""What the heads are compared with: the best constant box and moment, boxes and moments written as words, moments from
an MLP.

N boxes; all boxes are xyxy, 0 to 1. Moments are start and end in seconds.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Collection

import numpy as np

from tpo_shapes.questions import MASK, MASKS, MOMENTS, PLACEHOLDER, TASKS, Span
from tpo_shapes.world import CLIP_SECONDS

HEAD_OF = {**dict.fromkeys(TASKS, "region"), "moment": "temporal", **dict.fromkeys(MASKS, "mask")}
"""The head that a kind of question needs; conversation needs none."""
MOMENT = "<moment>"
"""The placeholder of the head of `moment_mlp`."""


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


def span_iou(span_s: Span, others_s: list[Span]) -> float:
    """Intersection over union of a moment with the one of some others that fits it best."""
    overlaps = []
    for start, end in others_s:
        shared = max(0.0, min(span_s[1], end) - max(span_s[0], start))
        union = max(span_s[1], end) - min(span_s[0], start) if shared else 1.0
        overlaps.append(shared / union)
    return max(overlaps)


def best_constant_span(moments_s: list[list[Span]], step: float = 0.25) -> Span:
    """The span on a grid that is right (IoU at least 0.5 with a true moment) for most of the given lists of moments."""
    times = np.arange(0, CLIP_SECONDS + step / 2, step).tolist()
    candidates = [[start, end] for start, end in itertools.combinations(times, 2)]
    return max(candidates, key=lambda span: sum(span_iou(span, moments) >= 0.5 for moments in moments_s))


def box_as_text(box_xyxy: list[float]) -> str:
    """Four whole numbers, percent of the picture's sides."""
    return " ".join(str(round(100 * value)) for value in box_xyxy)


def text_as_box(text: str) -> list[float] | None:
    """The four numbers behind the word "here" as a box, None where there are fewer."""
    found = re.search(r"here((?: \d+){4})", text)
    return [int(number) / 100 for number in found[1].split()] if found else None


def moments_as_text(spans_s: list[Span]) -> str:
    """Two whole numbers for each moment, percent of the clip's length."""
    return " ".join(str(round(100 * time / CLIP_SECONDS)) for span in spans_s for time in span)


def text_as_moments(text: str) -> list[Span]:
    """The pairs of numbers behind the word "at" as moments, none where there are no two."""
    found = re.search(r"\bat((?: \d+ \d+)+)", text)
    times = [int(number) * CLIP_SECONDS / 100 for number in found[1].split()] if found else []
    return [list(pair) for pair in zip(times[::2], times[1::2], strict=True)]


def of_heads(record: dict, heads: Collection[str]) -> dict | None:
    """The record with no other questions than those of conversation and those that need one of these heads; None where
    it has none of them."""
    lines, kinds = record["conversations"], record["kinds"]
    kept = [index for index, kind in enumerate(kinds) if HEAD_OF.get(kind) in (None, *heads)]
    if not kept:
        return None
    conversations = [dict(line) for index in kept for line in lines[2 * index : 2 * index + 2]]
    conversations[0]["value"] = "<image>\n" + conversations[0]["value"].removeprefix("<image>\n")
    plain = {**record, "conversations": conversations, "kinds": [kinds[index] for index in kept]}
    if "tasks" in record:
        plain["tasks"] = [task for task in record["tasks"] if task["head"] in heads]
    return plain


def bare_record(record: dict) -> dict:
    """The record for a host that nothing trains, which will never say "it is here": an answer that calls for a head is
    the placeholder alone."""
    calls = re.compile("|".join(map(re.escape, (PLACEHOLDER, MOMENTS, MASK))))
    plain = copy.deepcopy(record)
    for line in plain["conversations"]:
        if line["from"] == "gpt" and (found := calls.search(line["value"])):
            line["value"] = found[0]
    return plain


def moment_record(record: dict) -> dict:
    """The record with its moments wanted from `moment_mlp`."""
    plain = copy.deepcopy(record)
    for line in plain["conversations"]:
        line["value"] = line["value"].replace(MOMENTS, MOMENT)
    for task in plain.get("tasks", []):
        if task["head"] == "temporal":
            task["head"] = "moment"
    return plain


def baseline_record(record: dict) -> dict | None:
    """The record without masks, each box, given or wanted, as its numbers, and moments wanted from `moment_mlp`; None
    where nothing is left."""
    kept = of_heads(record, ("region", "temporal"))
    if kept is None or "tasks" not in kept:
        return kept
    plain = moment_record(kept)
    tasks = plain.pop("tasks")
    boxes = (task["boxes"][0] for task in tasks if "boxes" in task)
    for line in plain["conversations"]:
        line["value"] = re.sub(PLACEHOLDER, lambda _: box_as_text(next(boxes)), line["value"])
    moments = [task for task in tasks if task["head"] == "moment"]
    return plain | ({"tasks": moments} if moments else {})


def text_record(record: dict) -> dict | None:
    """As `baseline_record`, with the moments as numbers too: nothing is left for a head."""
    plain = baseline_record(record)
    if plain is None:
        return None
    moments = (task["spans"] for task in plain.pop("tasks", []))
    for line in plain["conversations"]:
        line["value"] = re.sub(MOMENT, lambda _: moments_as_text(next(moments)), line["value"])
    return plain
