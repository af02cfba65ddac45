"""Conversations as they are, and ms-swift's, whose boxes stand apart from the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tpo_head_region.formats.common import task
from tpo_head_region.formats.dialogue import BoxDialogueFormat, Dialogue, DialogueFormat
from tpo_plugin.convert import Boxes, Entry, Report, Row


@dataclass(kw_only=True)
class Messages(DialogueFormat):
    """Conversations: OpenAI, ShareGPT, LLaVA, TRL, LLaMA-Factory; messages or conversations, with images and videos."""


class Objects(Row):
    ref: list[str] | None = None
    bbox: list[Any] | None = None
    bbox_type: Literal["real", "norm1"] | None = None
    image_id: list[int] | None = None


@dataclass(kw_only=True)
class Swift(BoxDialogueFormat):
    """ms-swift: messages with <ref-object> and <bbox>, images, and objects with ref, bbox, bbox_type, image_id."""

    set_name = "swift"

    def start(self, report: Report) -> None:
        self._readers = {kind: Boxes(report, "xyxy", full) for kind, full in (("real", None), ("norm1", 1.0))}

    def entry(self, dialogue: Dialogue, row: Mapping[str, Any]) -> Entry:
        place = dialogue.place.at("objects")
        objects = Objects.read(row.get("objects") or {}, place)
        refs, boxes = objects.ref or [], objects.bbox or []
        text = "".join(text for _, text in dialogue.turns)
        for tag, field, given in (("<ref-object>", "ref", refs), ("<bbox>", "bbox", boxes)):
            if text.count(tag) != len(given):
                raise place.at(field).fault(f"of length {len(given)}", f"{text.count(tag)}, one for each {tag}")
        numbers = objects.image_id or []
        if len(numbers) > len(boxes):
            raise place.at("image_id").fault(numbers, f"a number for each of {len(boxes)} boxes at most")
        numbers = [*numbers, *[0] * (len(boxes) - len(numbers))]  # as swift does
        reader, tasks = self._readers[objects.bbox_type or "real"], []
        for k, (box, number) in enumerate(zip(boxes, numbers, strict=True)):
            if not 0 <= number < len(dialogue.images):
                expected = f"the number of one of {len(dialogue.images)} images, from 0"
                raise place.at("image_id", k).fault(number, expected)
            tasks.append(task([reader.read(box, self.shown(dialogue, number), place.at("bbox", k))]))
        words, turns = iter(refs), []
        for _, turn in dialogue.turns:
            turn = re.sub("<ref-object>", lambda _: next(words), turn)
            turns.append(turn.replace("<bbox>", "<region>"))
        return dialogue.entry(turns, tasks)
