"""OpenImages: a CSV of boxes whose columns are in the order x, x, y, y."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

import tpo_plugin as tpo
from tpo_head_region.formats.scenes import Scene, SceneFormat, Thing
from tpo_plugin.convert import Boxes, Place, Report, read_text

COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")


@dataclass(kw_only=True)
class OpenImages(SceneFormat):
    """OpenImages: CSV with XMin, XMax, YMin, YMax in 0 to 1, and a CSV with the names of its labels."""

    set_name = "openimages"

    source: Annotated[Path, typer.Argument(help="The boxes, oidv6-train-annotations-bbox.csv.")]
    names: Annotated[Path, typer.Option(help="Names of the labels, class-descriptions-boxable.csv.")]

    def boxes(self, report: Report) -> Boxes:
        return Boxes(report, "xxyy", 1)

    def scenes(self, report: Report) -> Iterator[Scene]:
        names = dict(row for row in csv.reader(read_text(self.names).splitlines()) if len(row) == 2)
        seen: set[str] = set()
        for id, rows in groupby(report.track(self._rows()), key=lambda row: row[1]["ImageID"]):
            things, own = [], list(rows)
            place = own[0][0]
            with report.faults():
                if id in seen:
                    raise place.at("ImageID").fault(id, "all boxes of a picture in lines that follow each other")
                seen.add(id)
                for place, row in own:
                    if row["LabelName"] not in names:
                        raise place.at("LabelName").fault(row["LabelName"], f"a label of {self.names}")
                    box = [_number(place, row, column) for column in COLUMNS[2:6]]
                    name = names[row["LabelName"]].lower()
                    where = place.at("XMin, XMax, YMin, YMax")
                    things.append(Thing(f"{id}:{place.line}", name, box, where, row["IsGroupOf"] == "1"))
                yield Scene(id, self.find(f"{id}.jpg"), own[0][0], things)

    def _rows(self) -> Iterator[tuple[Place, dict[str, str]]]:
        file = str(self.source)
        try:
            with self.source.open(encoding="utf-8-sig", newline="") as lines:  # gigabytes: never whole in memory
                reader = csv.DictReader(lines)
                if not set(COLUMNS) <= set(reader.fieldnames or ()):
                    raise Place(file, 1).fault(reader.fieldnames, f"a head line with {', '.join(COLUMNS)}")
                for row in reader:
                    yield Place(file, reader.line_num), row
        except (OSError, UnicodeDecodeError) as error:
            raise tpo.RecordError(f"cannot be read: {getattr(error, 'strerror', None) or error}", file=file) from error


def _number(place: Place, row: dict[str, str], column: str) -> float:
    try:
        return float(row[column])
    except (TypeError, ValueError):
        raise place.at(column).fault(row[column], "a number from 0 to 1") from None
