"""YOLO's text files, one beside each picture, and their data.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

import tpo_plugin as tpo
from tpo_head_region.formats.scenes import Scene, SceneFormat, Thing
from tpo_plugin.convert import Boxes, Place, Report, lines
from tpo_plugin.yaml_file import read_yaml

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(kw_only=True)
class Yolo(SceneFormat):
    """YOLO: labels/NAME.txt for images/NAME.jpg, lines `class cx cy w h` in 0 to 1, names in data.yaml."""

    set_name = "yolo"

    source: Annotated[Path, typer.Argument(help="data.yaml, with the names of the classes.")]
    pictures: Annotated[Path, typer.Option(help="Folder images/... of the part to convert; labels/... is beside it.")]

    def boxes(self, report: Report) -> Boxes:
        return Boxes(report, "cxcywh", 1)

    def scenes(self, report: Report) -> Iterator[Scene]:
        names = self._names()
        parts = list(self.pictures.parts)
        if "images" not in parts:
            raise tpo.TPOError(f"{self.pictures}: expected a folder images, or one in it, beside which labels is")
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        labels = Path(*parts)
        if not labels.is_dir():
            raise tpo.TPOError(f"{labels}: no such folder; expected the labels of the pictures in {self.pictures}")
        files = sorted(path for path in self.pictures.rglob("*") if path.suffix.lower() in SUFFIXES)
        named = {path.relative_to(self.pictures).with_suffix("") for path in files}
        for file in sorted(labels.rglob("*.txt")):
            if file.relative_to(labels).with_suffix("") not in named:
                report.leave_out("labels without a picture", file)
        for path in report.track(files):
            with report.faults():
                name = path.relative_to(self.pictures).with_suffix("").as_posix()
                file = labels / f"{name}.txt"  # without one, the picture shows no object
                things = [self._thing(name, place, line, names) for place, line in lines(file)] if file.exists() else []
                yield Scene(name, path, Place(str(path)), things, absent=names if self.negatives else ())

    def _names(self) -> list[str]:
        place = Place(str(self.source))
        names = read_yaml(self.source).get("names")
        if isinstance(names, dict) and sorted(names) == list(range(len(names))):
            names = [names[number] for number in range(len(names))]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise place.at("names").fault(names, "a list of names, or a name for each number from 0")
        return names

    def _thing(self, picture: str, place: Place, line: str, names: list[str]) -> Thing:
        words = line.split()
        try:
            number, values = int(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            raise place.fault(line, "a class and numbers from 0 to 1") from None
        if not 0 <= number < len(names):
            raise place.at("class").fault(number, f"0 to {len(names) - 1}, for {len(names)} names")
        if len(values) > 4:  # a polygon, whose extent is the box
            if len(values) % 2 or len(values) < 6:
                raise place.fault(line, "a class and x, y of at least 3 corners")
            xs, ys = values[::2], values[1::2]
            low, high = (min(xs), min(ys)), (max(xs), max(ys))
            values = [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, high[0] - low[0], high[1] - low[1]]
        return Thing(f"{picture}:{place.line}", names[number], values, place)
