"""The files of labelme."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tpo_head_region.formats.scenes import Scene, SceneFormat, Thing
from tpo_plugin.convert import Boxes, Place, Report, Row, read_json

NO_BOX = ("point", "points", "line", "linestrip")
LEAST = {"rectangle": 2, "circle": 2, "mask": 2, "polygon": 3}
"""Points of each shape that has an extent."""


class Shape(Row):
    label: str
    points: list[list[float]]
    shape_type: str = "polygon"
    group_id: int | None = None


class Document(Row):
    shapes: list[Shape]
    imagePath: str
    imageWidth: int | None = None
    imageHeight: int | None = None


@dataclass(kw_only=True)
class Labelme(SceneFormat):
    """labelme: a JSON file for each picture; the extents of its shapes, parts of a group united."""

    set_name = "labelme"

    source: Annotated[Path, typer.Argument(help="Folder of the JSON files.")]

    def boxes(self, report: Report) -> Boxes:
        return Boxes(report, "xyxy", None)

    def scenes(self, report: Report) -> Iterator[Scene]:
        for path in report.track(sorted(self.source.glob("*.json"))):
            with report.faults():
                place = Place(str(path))
                document = Document.read(read_json(path), place)
                parts: dict[tuple[str, str], Thing] = {}
                for index, shape in enumerate(document.shapes):
                    where = place.at("shapes", index)
                    if shape.shape_type in NO_BOX:
                        report.leave_out(f"a shape without extent: {shape.shape_type}", where)
                        continue
                    part = f"shape {index}" if shape.group_id is None else f"group {shape.group_id}"
                    box = _extent(shape, where)
                    if (shape.label, part) in parts:
                        old = parts[shape.label, part].box
                        box = [*map(min, old[:2], box[:2]), *map(max, old[2:], box[2:])]
                    id = f"{path.stem}:{part.replace(' ', '')}:{shape.label}"
                    parts[shape.label, part] = Thing(id, shape.label, box, where.at("points"))
                stated = (document.imageWidth, document.imageHeight)
                size = None if None in stated else stated
                image = self.find(document.imagePath.replace("\\", "/"))
                yield Scene(path.stem, image, place.at("imageWidth, imageHeight"), [*parts.values()], size)  # type: ignore[arg-type]


def _extent(shape: Shape, place: Place) -> list[float]:
    least = LEAST.get(shape.shape_type)
    if least is None:
        raise place.at("shape_type").fault(shape.shape_type, f"one of {', '.join([*LEAST, *NO_BOX])}")
    if len(shape.points) < least or any(len(point) != 2 for point in shape.points):
        raise place.at("points").fault(shape.points, f"at least {least} points [x, y] for a {shape.shape_type}")
    (xs, ys) = zip(*shape.points, strict=True)
    if shape.shape_type == "circle":  # its centre, and a point on its rim
        radius = math.dist(*shape.points[:2])
        return [xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius]
    return [min(xs), min(ys), max(xs), max(ys)]
