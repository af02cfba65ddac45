"""COCO's detection annotations, and the data sets that are laid out like them: Objects365 and LVIS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tpo_head_region.formats.scenes import Scene, SceneFormat, Thing
from tpo_plugin.convert import Boxes, Place, Report, Row, read_json


class Image(Row):
    id: int
    width: int
    height: int
    file_name: str | None = None
    coco_url: str | None = None
    neg_category_ids: list[int] | None = None
    not_exhaustive_category_ids: list[int] | None = None


class Category(Row):
    id: int
    name: str


class Annotation(Row):
    id: int
    image_id: int
    category_id: int
    bbox: Any = None
    iscrowd: int = 0
    isfake: int = 0
    isreflected: int = 0


class Document(Row):
    images: list[Any]
    annotations: list[Any]
    categories: list[Any]


@dataclass(kw_only=True)
class Coco(SceneFormat):
    """COCO detection: instances_*.json with boxes xywh in pixels."""

    set_name = "coco"

    source: Annotated[Path, typer.Argument(help="The annotations, instances_train2017.json.")]

    def boxes(self, report: Report) -> Boxes:
        return Boxes(report, "xywh", None)

    def scenes(self, report: Report) -> Iterator[Scene]:
        root = Place(str(self.source))
        document = Document.read(read_json(self.source), root)
        names = {row.id: row.name for row in _rows(Category, document.categories, root, "categories")}
        images: dict[int, tuple[Image, Place]] = {}
        for index, value in enumerate(document.images):
            with report.faults():
                place = root.at("images", index)
                image = Image.read(value, place)
                if image.id in images:
                    raise place.at("id").fault(image.id, "another id than that of another image")
                images[image.id] = image, place
        things: dict[int, list[Thing]] = {}
        marked = set[tuple[Any, ...]]()  # image and category, also of what is left out: it is there all the same
        for index, value in enumerate(document.annotations):
            ids = (value.get("image_id"), value.get("category_id")) if isinstance(value, dict) else (None, None)
            if all(isinstance(id, int) for id in ids):
                marked.add(ids)
            with report.faults():
                place = root.at("annotations", index)
                row = Annotation.read(value, place)
                if row.image_id not in images:
                    raise place.at("image_id").fault(row.image_id, "the id of one of the images")
                if row.category_id not in names:
                    raise place.at("category_id").fault(row.category_id, f"the id of one of {len(names)} categories")
                if row.isfake or row.isreflected:
                    report.leave_out("a thing that is only pictured, or mirrored", place)
                    continue
                things.setdefault(row.image_id, []).append(
                    Thing(str(row.id), names[row.category_id], row.bbox, place.at("bbox"), bool(row.iscrowd))
                )
        for image, place in report.track(images.values(), len(images)):
            with report.faults():
                path = self.find(*_file_names(image, place))
                yield Scene(
                    str(image.id),
                    path,
                    place.at("width, height"),
                    things.get(image.id, ()),
                    (image.width, image.height),
                    absent=self.absent(image, {id: n for id, n in names.items() if (image.id, id) not in marked}),
                    partly=[names[id] for id in image.not_exhaustive_category_ids or () if id in names],
                )

    def absent(self, image: Image, names: dict[int, str]) -> list[str]:
        """What the picture may be asked about though it is not marked in it: COCO marks every category."""
        return list(names.values()) if self.negatives else []


@dataclass(kw_only=True)
class Objects365(Coco):
    """Objects365: as COCO; things that are pictured or mirrored are left out."""

    set_name = "objects365"


@dataclass(kw_only=True)
class Lvis(Coco):
    """LVIS v1: as COCO, with 1203 names; of each picture only some names are known to be absent."""

    set_name = "lvis"

    def absent(self, image: Image, names: dict[int, str]) -> list[str]:
        return [names[id] for id in image.neg_category_ids or () if id in names]


def _rows(kind: type[Category], values: list[Any], root: Place, field: str) -> Iterator[Category]:
    for index, value in enumerate(values):
        yield kind.read(value, root.at(field, index))


def _file_names(image: Image, place: Place) -> list[str]:
    """Where the picture may be: LVIS has only its address."""
    if image.file_name:
        return [image.file_name]
    if image.coco_url:
        return ["/".join(image.coco_url.split("/")[-2:])]
    raise place.at("file_name").fault(image.file_name, "a file's name, or a coco_url")
