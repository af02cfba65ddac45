"""Visual Genome's region descriptions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tpo_head_region.formats.common import PictureFormat, expression, referring
from tpo_plugin.convert import Boxes, Entry, Place, Report, Row, Rows, picture, read_json


class Region(Row):
    region_id: int
    image_id: int
    phrase: str
    x: int
    y: int
    width: int
    height: int


class Image(Row):
    id: int
    regions: list[Any]


class About(Row):
    image_id: int
    width: int
    height: int
    url: str
    coco_id: int | None = None


@dataclass(kw_only=True)
class VisualGenome(PictureFormat):
    """Visual Genome regions: region_descriptions.json with x, y, width, height in pixels."""

    source: Annotated[Path, typer.Argument(help="region_descriptions.json.")]
    image_data: Annotated[
        Path | None, typer.Option(help="image_data.json: sizes to compare with, and which pictures are COCO's.")
    ] = None

    def entries(self, report: Report) -> Iterator[Entry]:
        about = self._about()
        rows, boxes = Rows(self.source), Boxes(report, "xywh", None)
        for index in report.track(range(len(rows))):
            with report.faults():
                place = rows.place(index)
                image = Image.read(rows[index], place)
                known = about.get(image.id)
                names = ["/".join(known.url.split("/")[-2:])] if known else []
                names += [f"{folder}/{image.id}.jpg" for folder in ("VG_100K", "VG_100K_2")]
                path = self.find(*names)
                size = (known.width, known.height) if known else None
                shown = picture(path, place.at("id"), size, self.boxes_on)
                ids = [known.coco_id] if known and known.coco_id is not None else []
                for number, value in enumerate(image.regions):
                    with report.faults():
                        where = place.at("regions", number)
                        region = Region.read(value, where)
                        if region.image_id != image.id:
                            raise where.at("image_id").fault(region.image_id, f"{image.id}, its picture's id")
                        values = [region.x, region.y, region.width, region.height]
                        box = boxes.read(values, shown, where.at("x, y, width, height"))
                        phrase = expression(region.phrase, where.at("phrase"))
                        yield referring(f"vg:{region.region_id}", phrase, [box], path, picture_ids=ids)

    def _about(self) -> dict[int, About]:
        if self.image_data is None:
            return {}
        place = Place(str(self.image_data))
        values = read_json(self.image_data)
        if not isinstance(values, list):
            raise place.fault(values, "a list of pictures")
        rows = [About.read(value, place.at(index)) for index, value in enumerate(values)]
        return {row.image_id: row for row in rows}
