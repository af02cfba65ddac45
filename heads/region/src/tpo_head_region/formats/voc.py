"""Pascal VOC's XML files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from xml.etree import ElementTree

import typer

import tpo_plugin as tpo
from tpo_head_region.formats.scenes import Scene, SceneFormat, Thing
from tpo_plugin.convert import Boxes, Place, Report, lines

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file. Raises `RecordError`."""
    try:
        return ElementTree.parse(path).getroot()
    except (OSError, ValueError, ElementTree.ParseError) as error:  # ValueError: of a name with a null byte
        raise tpo.RecordError(f"cannot be read as XML: {error}", file=str(path)) from error


def number(element: ElementTree.Element, name: str, place: Place) -> float:
    """The number in a child element. Raises `Fault`."""
    text = element.findtext(name)
    try:
        found = float(text or "")
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise place.at(name).fault(text, "a number")
    return found


def size_of(root: ElementTree.Element, place: Place) -> tuple[int, int] | None:
    """(width, height) in an element `size`, where there is one."""
    size = root.find("size")
    if size is None:
        return None
    width, height = (int(number(size, name, place.at("size"))) for name in ("width", "height"))
    return width, height


@dataclass(kw_only=True)
class Voc(SceneFormat):
    """Pascal VOC: Annotations/NAME.xml with xmin, ymin, xmax, ymax in pixels."""

    set_name = "voc"

    source: Annotated[Path, typer.Argument(help="Folder Annotations, of XML files.")]
    listed: Annotated[
        Path | None, typer.Option(help="Names to take, one a line, as ImageSets/Main/train.txt; by default all.")
    ] = None
    counts_from: Annotated[
        Literal["1", "0"],
        typer.Option(help="First pixel: 1, the last one inside, by VOC's development kit; 0, for other exporters."),
    ] = "1"

    def boxes(self, report: Report) -> Boxes:
        return Boxes(report, "xyxy", None, one_based=self.counts_from == "1")

    def scenes(self, report: Report) -> Iterator[Scene]:
        if self.listed is not None:
            files = [self.source / f"{line.split()[0]}.xml" for _, line in lines(self.listed)]
        else:
            files = sorted(self.source.glob("*.xml"))
        for path in report.track(files):
            with report.faults():
                place = Place(str(path))
                root = read_xml(path)
                things = []
                for index, item in enumerate(root.findall("object")):
                    where = place.at("object", index)
                    box, name = item.find("bndbox"), (item.findtext("name") or "").strip()
                    if box is None or not name:
                        raise where.fault(ElementTree.tostring(item, "unicode"), "an object with name and bndbox")
                    values = [number(box, corner, where.at("bndbox")) for corner in CORNERS]
                    things.append(Thing(f"{path.stem}:{index}", name, values, where.at("bndbox")))
                names = [root.findtext("filename") or f"{path.stem}.jpg", f"{path.stem}.jpg"]
                yield Scene(path.stem, self.find(*names), place.at("size"), things, size_of(root, place))
