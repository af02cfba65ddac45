"""RefCOCO as two publishers put it on the Hugging Face hub: one with boxes xywh, the other with boxes xyxy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from tpo_head_region.formats.common import PictureFormat, expression, referring
from tpo_head_region.formats.media import stored_or_none
from tpo_plugin.convert import Boxes, Entry, Order, Place, Report, Row, Rows, StoredPicture, picture


class LmmsRow(Row):
    question_id: str
    answer: list[str]
    bbox: Any
    file_name: str
    image: Any = None


class Jxu124Row(Row):
    ref_id: int
    sentences: list[dict[str, Any]]
    bbox: Any
    image_path: str
    image_id: int | None = None


@dataclass(kw_only=True)
class HubFormat(PictureFormat):
    """One row an object, with all its expressions."""

    source: Annotated[Path, typer.Argument(help="A Parquet file of the set, or its rows as JSON Lines.")]

    order: ClassVar[Order]
    set_name: ClassVar[str]

    def read(self, value: Any, place: Place) -> tuple[str, list[tuple[Place, str, str]], Any, Path | StoredPicture]:
        """Its id, its expressions (place, id, text), its box, and its picture."""
        raise NotImplementedError(f"{type(self).__name__} must define read")

    def entries(self, report: Report) -> Iterator[Entry]:
        rows, boxes = Rows(self.source), Boxes(report, self.order, None)
        for index in report.track(range(len(rows))):
            with report.faults():
                place = rows.place(index)
                id, phrases, bbox, image = self.read(rows[index], place)
                box = boxes.read(bbox, picture(image, place, None, self.boxes_on), place.at("bbox"))
                for where, number, text in phrases:
                    yield referring(f"{self.set_name}:{id}:{number}", expression(text, where), [box], image)


@dataclass(kw_only=True)
class Lmms(HubFormat):
    """RefCOCO of lmms-lab: bbox xywh in pixels, answer a list of expressions; it has no split to train on."""

    set_name = "refcoco-lmms"
    order = "xywh"

    def read(self, value: Any, place: Place) -> tuple[str, list[tuple[Place, str, str]], Any, Path | StoredPicture]:
        row = LmmsRow.read(value, place)
        phrases = [(place.at("answer", k), str(k), text) for k, text in enumerate(row.answer)]
        # The file's name ends in the annotation's number: no such file exists.
        name = re.sub(r"_\d+(\.\w+)$", r"\1", row.file_name)
        image = stored_or_none(row.image, Path(name).stem, place.at("image")) or self.find(row.file_name, name)
        return row.question_id, phrases, row.bbox, image


@dataclass(kw_only=True)
class Jxu124(HubFormat):
    """RefCOCO, RefCOCO+, RefCOCOg of jxu124: bbox xyxy in pixels; pictures by image_path, coco/train2014/..."""

    set_name = "refcoco-jxu124"
    order = "xyxy"

    def read(self, value: Any, place: Place) -> tuple[str, list[tuple[Place, str, str]], Any, Path | StoredPicture]:
        row = Jxu124Row.read(value, place)
        phrases = []
        for number, sentence in enumerate(row.sentences):
            where = place.at("sentences", number)
            text = sentence.get("sent")
            if not isinstance(text, str):
                raise where.at("sent").fault(text, "a text")
            phrases.append((where.at("sent"), str(sentence.get("sent_id", number)), text))
        return str(row.ref_id), phrases, row.bbox, self.find(row.image_path)
