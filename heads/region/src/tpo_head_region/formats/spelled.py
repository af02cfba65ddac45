"""Conversations whose boxes are spelt in the text, each model family in its own way."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import typer

from tpo_head_region.formats.common import task
from tpo_head_region.formats.dialogue import BoxDialogueFormat, Dialogue
from tpo_plugin.convert import Boxes, Entry, Picture, Place, Report
from tpo_plugin.json_file import parse_json

Numbers = list[float]


@dataclass(kw_only=True)
class SpelledFormat(BoxDialogueFormat):
    """A way to spell boxes. What `find` matches becomes `<region>`, and `parse` gives its boxes."""

    find: ClassVar[re.Pattern[str]]
    unwrap: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")
    """Marks around words, which are left out."""
    leftover: ClassVar[re.Pattern[str]]
    """What a text holds only where it spells a box in another way."""
    full: ClassVar[float | None] = 1000.0

    def parse(self, match: re.Match[str], place: Place) -> tuple[str, list[list[Numbers]]]:
        """The text that takes the place of a match, with a `<region>` for each list of boxes, as numbers."""
        raise NotImplementedError(f"{type(self).__name__} must define parse")

    def frame(self, shown: Picture) -> Picture:
        """The picture with the size in which pixels count."""
        return shown

    def check_turn(self, text: str, place: Place) -> None:
        """Raises `Fault` for a turn that breaks the spelling in more than one box."""

    def entry(self, dialogue: Dialogue, row: Mapping[str, Any]) -> Entry:
        turns: list[str] = []
        tasks: list[dict[str, Any]] = []
        frame = functools.cache(lambda: self.frame(self.shown(dialogue)))
        for place, text in dialogue.turns:
            self.check_turn(text, place)

            def swap(match: re.Match[str], place: Place = place) -> str:
                words, groups = self.parse(match, place)
                tasks.extend(task([self._boxes.read(box, frame(), place) for box in group]) for group in groups)
                before = match.string[: match.start()]
                return words if not before or before[-1].isspace() else f" {words}"

            text = self.find.sub(swap, text)
            if match := self.leftover.search(text):
                raise place.fault(
                    text[max(0, match.start() - 20) : match.end() + 40], "boxes as this format spells them"
                )
            turns.append(self.unwrap.sub("", text))
        return dialogue.entry(turns, tasks)


@dataclass(kw_only=True)
class OfPictureOrSquare(SpelledFormat):
    """A way to spell boxes that is used for boxes of the picture, and for boxes of it padded to a square."""

    of: Annotated[
        Literal["picture", "square"],
        typer.Option(help="Whether the boxes are of the picture, or of it padded to a square: files do not say."),
    ]

    def boxes(self, report: Report) -> Boxes:
        return Boxes(report, self.order, self.full, square=self.of == "square")


_PAIRS = re.compile(r"\s*\((\d+),\s*(\d+)\),\s*\((\d+),\s*(\d+)\)\s*")


@dataclass(kw_only=True)
class QwenVL(SpelledFormat):
    """Qwen-VL: `<ref>words</ref><box>(x1,y1),(x2,y2)</box>`, 0 to 1000 of the picture."""

    set_name = "qwen-vl"
    find = re.compile(r"<box>(.*?)</box>", re.DOTALL)
    unwrap = re.compile(r"</?ref>")
    leftover = re.compile(r"</?(?:box|quad)>")

    def parse(self, match: re.Match[str], place: Place) -> tuple[str, list[list[Numbers]]]:
        pairs = _PAIRS.fullmatch(match[1])
        if pairs is None:
            raise place.fault(match[0], "a box as (x1,y1),(x2,y2)")
        return "<region>", [[[float(value) for value in pairs.groups()]]]


@dataclass(kw_only=True)
class Qwen2VL(QwenVL):
    """Qwen2-VL: <|box_start|>(x1,y1),(x2,y2)<|box_end|>, 0 to 1000 of the picture."""

    set_name = "qwen2-vl"
    find = re.compile(r"<\|box_start\|>(.*?)<\|box_end\|>", re.DOTALL)
    unwrap = re.compile(r"<\|object_ref_(?:start|end)\|>")
    leftover = re.compile(r"<\|box_|</?box>")


@dataclass(kw_only=True)
class Qwen3VL(SpelledFormat):
    """Qwen3-VL: JSON with bbox_2d and label in the text, 0 to 1000 of the picture."""

    set_name = "qwen3-vl"
    find = re.compile(r"```(?:json)?\s*(.*?)\s*```|([\[{].*bbox_2d.*[\]}])", re.DOTALL)
    leftover = re.compile(r"bbox_2d")

    def parse(self, match: re.Match[str], place: Place) -> tuple[str, list[list[Numbers]]]:
        if "bbox_2d" not in match[0]:
            return match[0], []
        try:
            items = parse_json(match[1] or match[2])
        except ValueError as error:
            raise place.fault(match[0], f"JSON ({error})") from None
        texts, groups = [], []
        for item in items if isinstance(items, list) else [items]:
            if not isinstance(item, dict) or "bbox_2d" not in item:
                raise place.fault(item, "an object with bbox_2d")
            texts.append(f"{item['label']}: <region>" if isinstance(item.get("label"), str) else "<region>")
            groups.append([item["bbox_2d"]])
        return "\n".join(texts), groups


@dataclass(kw_only=True)
class Qwen25VL(Qwen3VL):
    """Qwen2.5-VL: JSON with bbox_2d and label in the text, in pixels of the picture as the model resized it."""

    set_name = "qwen2.5-vl"
    full = None
    factor: ClassVar[int] = 28

    min_pixels: Annotated[int, typer.Option(min=1, help="Least pixels of a resized picture, as in that training.")]
    max_pixels: Annotated[int, typer.Option(min=1, help="Most pixels of a resized picture, as in that training.")]

    def frame(self, shown: Picture) -> Picture:
        """The picture in the size to which the model's processor brings it: multiples of 28 within the limits."""
        sides, pixels = (shown.width, shown.height), shown.width * shown.height
        width, height = self._multiples(sides, 1.0, round)
        if width * height > self.max_pixels:
            width, height = self._multiples(sides, math.sqrt(self.max_pixels / pixels), math.floor)
        elif width * height < self.min_pixels:
            width, height = self._multiples(sides, math.sqrt(self.min_pixels / pixels), math.ceil)
        return replace(shown, width=width, height=height)

    def _multiples(self, sides: tuple[int, int], scale: float, rounded: Callable[[float], int]) -> list[int]:
        return [max(self.factor, rounded(side * scale / self.factor) * self.factor) for side in sides]


@dataclass(kw_only=True)
class PaliGemma(SpelledFormat):
    """PaliGemma: <loc0256><loc0128><loc0767><loc0512> words, y1 x1 y2 x2 in 0 to 1023."""

    set_name = "paligemma"
    find = re.compile(r"((?:<loc\d+>)+)((?:<seg\d+>)*)")
    leftover = re.compile(r"<(?:loc|seg)\d+>")
    order = "yxyx"
    full = 1023.0

    def parse(self, match: re.Match[str], place: Place) -> tuple[str, list[list[Numbers]]]:
        numbers = re.findall(r"<loc(\d{4})>", match[1])
        if len(numbers) != 4:
            raise place.fault(match[0], "four tokens <loc0000> to <loc1023> for a box")
        if match[2]:
            self._report.change("masks in <seg> tokens were dropped, their boxes kept", place)
        return "<region>", [[[float(number) for number in numbers]]]


@dataclass(kw_only=True)
class Florence(SpelledFormat):
    """Florence-2: `words<loc_12><loc_34><loc_560><loc_780>`, x1 y1 x2 y2 in 0 to 999."""

    set_name = "florence"
    find = re.compile(r"(?:<loc_\d+>)+")
    leftover = re.compile(r"</?poly>|<loc_")

    def parse(self, match: re.Match[str], place: Place) -> tuple[str, list[list[Numbers]]]:
        numbers = re.findall(r"\d+", match[0])
        if len(numbers) != 4:
            raise place.fault(match[0], "four tokens <loc_0> to <loc_999> for a box (quads and polygons are none)")
        return "<region>", [[[float(number) + 0.5 for number in numbers]]]  # the middle of its bin


@dataclass(kw_only=True)
class InternVL(SpelledFormat):
    """InternVL: `<ref>words</ref><box>[[x1, y1, x2, y2]]</box>`, 0 to 1000 of the picture."""

    set_name = "internvl"
    find = re.compile(r"<box>(.*?)</box>", re.DOTALL)
    unwrap = re.compile(r"</?ref>")
    leftover = re.compile(r"</?box>")

    def parse(self, match: re.Match[str], place: Place) -> tuple[str, list[list[Numbers]]]:
        try:
            boxes = parse_json(match[1])
        except ValueError:
            boxes = None
        if not isinstance(boxes, list) or not boxes or not all(isinstance(box, list) for box in boxes):
            raise place.fault(match[0], "boxes as [[x1, y1, x2, y2], ...]")
        return "<region>", [boxes]


@dataclass(kw_only=True)
class AsV2(OfPictureOrSquare, InternVL):
    """All-Seeing V2: as InternVL in 0 to 999, and `<pred>words</pred>` with the boxes of subject and object."""

    set_name = "as-v2"
    unwrap = re.compile(r"</?(?:ref|pred)>")
    full = 999.0

    def check_turn(self, text: str, place: Place) -> None:
        for match in re.finditer(r"<pred>(.*?)</pred>((?:\s*<box>.*?</box>)*)", text, re.DOTALL):
            if match[2].count("<box>") != 2:
                raise place.fault(match[0], "two boxes behind a <pred>, of its subject and its object")


_PATCH = re.compile(r"\s*<patch_index_(\d{1,9})>\s*<patch_index_(\d{1,9})>\s*")


@dataclass(kw_only=True)
class Kosmos(SpelledFormat):
    """Kosmos-2: `<phrase>words</phrase><object><patch_index_0044><patch_index_0863></object>`, cells of 32 x 32."""

    set_name = "kosmos"
    find = re.compile(r"<object>(.*?)</object>", re.DOTALL)
    unwrap = re.compile(r"</?(?:phrase|p|grounding)>")
    leftover = re.compile(r"</?object>|<patch_index|<point")
    full = 1.0
    side: ClassVar[int] = 32

    def parse(self, match: re.Match[str], place: Place) -> tuple[str, list[list[Numbers]]]:
        boxes = []
        for part in match[1].split("</delimiter_of_multi_objects/>"):
            cells = _PATCH.fullmatch(part)
            if cells is None:
                raise place.fault(part, "two patch indices, of the first and the last cell")
            first, last = (int(number) for number in cells.groups())
            if max(first, last) >= self.side**2:
                raise place.fault(part, f"patch indices from 0 to {self.side**2 - 1}")
            (y1, x1), (y2, x2) = divmod(first, self.side), divmod(last, self.side)
            if x2 < x1 or y2 < y1:
                raise place.fault(part, "a last cell that is neither above nor left of the first")
            # As its processor decodes: centres of the cells, but for a box that is one cell wide or high.
            low, high = (0.0, 1.0) if x1 == x2 or y1 == y2 else (0.5, 0.5)
            boxes.append(
                [(x1 + low) / self.side, (y1 + low) / self.side, (x2 + high) / self.side, (y2 + high) / self.side]
            )
        return "<region>", [boxes]


@dataclass(kw_only=True)
class ShikraText(SpelledFormat):
    """Shikra's answers: [0.123,0.456,0.789,0.900], several by ';', of the picture padded to a square."""

    set_name = "shikra-text"
    find = re.compile(r"\[\s*-?\d*\.?\d+(?:\s*[,;]\s*-?\d*\.?\d+){2,}\s*\]")
    leftover = re.compile(r"<boxes>")
    full = 1.0

    def boxes(self, report: Report) -> Boxes:
        return Boxes(report, "xyxy", 1, square=True)

    def parse(self, match: re.Match[str], place: Place) -> tuple[str, list[list[Numbers]]]:
        return "<region>", [[[float(value) for value in box.split(",")] for box in match[0][1:-1].split(";")]]


@dataclass(kw_only=True)
class LlavaText(OfPictureOrSquare, ShikraText):
    """LLaVA's mix: [0.12, 0.3, 0.55, 0.9] in the text, of the picture or of it padded to a square."""

    set_name = "llava-text"
