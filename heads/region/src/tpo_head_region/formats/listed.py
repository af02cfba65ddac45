"""Conversations whose boxes stand in lists beside the text: the files of Shikra and of Ferret."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo_head_region.formats.common import task
from tpo_head_region.formats.dialogue import BoxDialogueFormat, Dialogue
from tpo_head_region.formats.media import medium
from tpo_plugin.convert import Entry, Place, Row


class ShikraRow(Row):
    img_path: str
    boxes: list[Any]
    question: str
    question_boxes_seq: list[list[int]] | None = None
    cot_with_ans: str
    answer_boxes_seq: list[list[int]] | None = None


@dataclass(kw_only=True)
class Shikra(BoxDialogueFormat):
    """Shikra's files: boxes xyxy in pixels, <ph_st>words<ph_ed> in the text, and boxes_seq, which says whose boxes."""

    set_name = "shikra"

    def dialogue(self, row: Any, place: Place, id: str, root: Path) -> Dialogue:
        about = ShikraRow.read(row, place)
        texts = [(place.at(field), getattr(about, field)) for field in ("question", "cot_with_ans")]
        return Dialogue(id, place, texts, None, [medium(about.img_path, id, root, place.at("img_path"))], [])

    def entry(self, dialogue: Dialogue, row: Mapping[str, Any]) -> Entry:
        place, about, shown = dialogue.place, ShikraRow.read(row, dialogue.place), self.shown(dialogue)
        turns, tasks = [], []
        for field, (_, text) in zip(("question_boxes_seq", "answer_boxes_seq"), dialogue.turns, strict=True):
            sequence = getattr(about, field) or []
            if text.count("<ph_ed>") != len(sequence):
                raise place.at(field).fault(sequence, f"{text.count('<ph_ed>')} lists, one for each <ph_ed>")
            for k, numbers in enumerate(sequence):
                if not numbers or not all(0 <= number < len(about.boxes) for number in numbers):
                    raise place.at(field, k).fault(numbers, f"numbers from 0 to {len(about.boxes) - 1}, of boxes")
                places = [(about.boxes[number], place.at("boxes", number)) for number in numbers]
                tasks.append(task([self._boxes.read(box, shown, where) for box, where in places]))
            turns.append(text.replace("<ph_st>", "").replace("<ph_ed>", " <region>"))
        return dialogue.entry(turns, tasks)


class FerretRow(Row):
    image_w: int
    image_h: int
    box_x1y1x2y2: list[list[Any]]


_LOCATION = re.compile(r"<bbox_location(\d+)>")


@dataclass(kw_only=True)
class Ferret(BoxDialogueFormat):
    """Ferret's files: <bbox_location0> in a turn, and its boxes in box_x1y1x2y2, xyxy in pixels, for each turn."""

    set_name = "ferret"

    def entry(self, dialogue: Dialogue, row: Mapping[str, Any]) -> Entry:
        about = FerretRow.read(row, dialogue.place)
        lists: Sequence[list[Any]] = about.box_x1y1x2y2
        if len(lists) != len(dialogue.turns):
            expected = f"{len(dialogue.turns)}, a list for each turn"
            raise dialogue.place.at("box_x1y1x2y2").fault(f"of length {len(lists)}", expected)
        shown = self.shown(dialogue, stated=(about.image_w, about.image_h))
        turns, tasks = [], []
        for number, (place, text) in enumerate(dialogue.turns):
            where, own = dialogue.place.at("box_x1y1x2y2", number), lists[number]
            for match in _LOCATION.finditer(text):
                if len(match[1]) > 9 or int(match[1]) >= len(own):
                    raise place.fault(match[0], f"one of the {len(own)} boxes of this turn")
                tasks.append(task([self._boxes.read(own[int(match[1])], shown, where.at(int(match[1])))]))
            turns.append(_LOCATION.sub("<region>", text))
        return dialogue.entry(turns, tasks)
