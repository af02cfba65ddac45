"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO, as they are downloaded: refs and instances.json in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import tpo_plugin as tpo
from tpo_head_region.formats.coco import Document
from tpo_head_region.formats.common import PictureFormat, expression, referring
from tpo_plugin.convert import Boxes, Entry, Place, Report, Row, picture, read_json, read_pickle

SPLITS = {
    "refcoco": ("train", "val", "testA", "testB", "test"),
    "refcoco+": ("train", "val", "testA", "testB", "test"),
    "refcocog": ("train", "val", "test"),
    "grefcoco": ("train", "val", "testA", "testB"),
}
"""Of each set; "test" of RefCOCO and RefCOCO+ is of refs(google).p."""


class Sentence(Row):
    sent_id: int
    sent: str


class Ref(Row):
    ref_id: int
    image_id: int
    ann_id: int | list[int]
    split: str
    sentences: list[Sentence]


class Image(Row):
    id: int
    file_name: str
    width: int
    height: int


class Annotation(Row):
    id: int
    image_id: int
    bbox: Any = None
    iscrowd: int = 0


@dataclass(kw_only=True)
class RefCoco(PictureFormat):
    """RefCOCO, RefCOCO+, RefCOCOg: refs(unc).p, refs(google).p or refs(umd).p, and instances.json, in a folder."""

    source: Annotated[Path, typer.Argument(help="Folder refcoco, refcoco+ or refcocog, as downloaded.")]
    split: Annotated[str, typer.Option(help="train, val, testA, testB, or test.")] = "train"
    by: Annotated[
        str | None, typer.Option(help="Whose refs: unc, google or umd; by default the only ones, or unc, or umd.")
    ] = None

    def entries(self, report: Report) -> Iterator[Entry]:
        name = self.source.resolve().name
        splits = SPLITS.get(name)
        if splits is None:
            raise tpo.TPOError(f"{self.source}: expected a folder called {', '.join(map(repr, SPLITS))}")
        if self.split not in splits:
            raise tpo.TPOError(f"split is {self.split!r}; {name} has {', '.join(map(repr, splits))}")
        path = self._refs()
        refs = read_json(path) if path.suffix == ".json" else read_pickle(path)
        if not isinstance(refs, list):
            raise Place(str(path)).fault(refs, "a list of refs")
        images, annotations = self._instances()
        boxes = Boxes(report, "xywh", None)
        for index, value in enumerate(report.track(refs)):
            with report.faults():
                place = Place(str(path)).at(index)
                ref = Ref.read(value, place)
                if ref.split not in splits:
                    raise place.at("split").fault(ref.split, f"one of {name}'s: {', '.join(splits)}")
                if ref.split != self.split:
                    continue
                if ref.image_id not in images:
                    raise place.at("image_id").fault(ref.image_id, "the id of an image of instances.json")
                if not ref.sentences:
                    report.leave_out("a ref without a sentence", place)
                    continue
                image, where = images[ref.image_id]
                # The name in the ref ends in the annotation's number: no such file exists.
                file = self.find(image.file_name)
                shown = picture(file, where, (image.width, image.height), self.boxes_on)
                found = []
                for id in self.targets(ref, place):
                    if id not in annotations:
                        raise place.at("ann_id").fault(id, "the id of an annotation of instances.json")
                    annotation, there = annotations[id]
                    if annotation.image_id != ref.image_id:
                        raise place.at("ann_id").fault(id, f"an annotation of image {ref.image_id}")
                    if annotation.iscrowd:
                        report.leave_out("a group is marked as one", there)
                        break
                    found.append(boxes.read(annotation.bbox, shown, there.at("bbox")))
                else:
                    for number, sentence in enumerate(ref.sentences):
                        phrase = expression(sentence.sent, place.at("sentences", number).at("sent"))
                        sample = f"{name}:{ref.ref_id}:{sentence.sent_id}"
                        yield referring(sample, phrase, found, file, picture_ids=[ref.image_id])

    def targets(self, ref: Ref, place: Place) -> list[int]:
        """Ids of the annotations that a ref means."""
        if not isinstance(ref.ann_id, int):
            raise place.at("ann_id").fault(ref.ann_id, "the id of an annotation")
        return [ref.ann_id]

    def _refs(self) -> Path:
        files = sorted([*self.source.glob("*refs(*).p"), *self.source.glob("*refs(*).json")])
        found = {path.name.partition("(")[2].partition(")")[0]: path for path in files}
        if self.by is not None and self.by in found:
            return found[self.by]
        wanted: list[str] = [by for by in ("unc", "umd") if by in found] or list(found)
        if self.by is not None or len(wanted) != 1:
            raise tpo.TPOError(
                f"{self.source}: holds refs by {', '.join(found) or 'nobody'}; expected refs({self.by or 'unc'}).p"
            )
        return found[wanted[0]]

    def _instances(self) -> tuple[dict[int, tuple[Image, Place]], dict[int, tuple[Annotation, Place]]]:
        path = self.source / "instances.json"
        root = Place(str(path))
        document = Document.read(read_json(path), root)
        images, annotations = {}, {}
        for index, value in enumerate(document.images):
            image = Image.read(value, root.at("images", index))
            images[image.id] = image, root.at("images", index)
        for index, value in enumerate(document.annotations):
            annotation = Annotation.read(value, root.at("annotations", index))
            annotations[annotation.id] = annotation, root.at("annotations", index)
        return images, annotations


@dataclass(kw_only=True)
class GRefCoco(RefCoco):
    """gRefCOCO: grefs(unc).json and instances.json in a folder; an expression may mean several things, or none."""

    def targets(self, ref: Ref, place: Place) -> list[int]:
        given = ref.ann_id
        if not isinstance(given, list) or not given or (-1 in given and given != [-1]):
            raise place.at("ann_id").fault(given, "a list of ids of annotations, or [-1] for nothing")
        return [] if given == [-1] else given
