"""CVAT's XML for images, version 1.1."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from xml.etree.ElementTree import Element

import typer

import tpo_plugin as tpo
from tpo_head_region.formats.scenes import Scene, SceneFormat, Thing
from tpo_head_region.formats.voc import read_xml
from tpo_plugin.convert import MISSING, Boxes, Place, Report

CORNERS = ("xtl", "ytl", "xbr", "ybr")


@dataclass(kw_only=True)
class Cvat(SceneFormat):
    """CVAT for images 1.1: boxes, and the extents of polygons, in pixels."""

    set_name = "cvat"

    source: Annotated[Path, typer.Argument(help="The export, annotations.xml.")]

    def boxes(self, report: Report) -> Boxes:
        return Boxes(report, "xyxy", None)

    def scenes(self, report: Report) -> Iterator[Scene]:
        root = read_xml(self.source)
        if root.find("track") is not None:
            raise tpo.RecordError(
                "holds tracks, so it is an export for video; expected CVAT for images 1.1", file=str(self.source)
            )
        for index, image in enumerate(report.track(root.findall("image"))):
            with report.faults():
                place = Place(str(self.source)).at("image", index)
                things = []
                for number, item in enumerate([*image.findall("box"), *image.findall("polygon")]):
                    where = place.at(item.tag, number)
                    if item.get("outside") == "1":
                        report.leave_out("a box that is marked as outside", where)
                        continue
                    box = _corners(item, where) if item.tag == "box" else _extent(item, where)
                    id = f"{_text(image, 'id', place)}:{number}"
                    things.append(Thing(id, _text(item, "label", where), box, where))
                width, height = (int(_number(image, name, place)) for name in ("width", "height"))
                path = self.find(_text(image, "name", place))
                yield Scene(_text(image, "id", place), path, place.at("width, height"), things, (width, height))


def _text(element: Element, name: str, place: Place) -> str:
    value = element.get(name)
    if not value:
        raise place.at(name).fault(MISSING, "a text")
    return value


def _number(element: Element, name: str, place: Place) -> float:
    try:
        found = float(element.get(name, ""))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise place.at(name).fault(element.get(name, MISSING), "a number")
    return found


def _corners(item: Element, place: Place) -> list[float]:
    return [_number(item, name, place) for name in CORNERS]


def _extent(item: Element, place: Place) -> list[float]:
    text = _text(item, "points", place)
    try:
        xs, ys = zip(*(map(float, point.split(",")) for point in text.split(";")), strict=True)
    except ValueError:
        raise place.at("points").fault(text, "x,y;x,y;...") from None
    return [min(xs), min(ys), max(xs), max(ys)]
