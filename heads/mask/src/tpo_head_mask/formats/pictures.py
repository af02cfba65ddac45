"""Masks of pictures: LISA's ReasonSeg, semantic sets such as ADE20K, and GLaMM's GranD-f."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as field_of
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import tpo_plugin as tpo
from tpo_head_mask.formats.common import (
    HEAD,
    RLE,
    Masks,
    Size,
    asked,
    check_rle,
    field,
    files,
    folder,
    image_size,
    label_masks,
    mask_target,
    read_document,
    read_text,
    referring,
)
from tpo_plugin.checks import is_number
from tpo_plugin.convert import Entry, Format, Place, Report, worded

SENTENCES = ("{text} Answer with a mask.", "{text} Please segment it.", "{text} Mark it in the picture.", "{text}")
DESCRIBE = (
    "Describe the picture, and mark each thing that you name.",
    "What does the picture show? Give a mask of each thing.",
    "Tell what is to be seen, with masks.",
)


@dataclass(kw_only=True)
class ReasonSeg(Masks):
    """LISA's ReasonSeg: SPLIT/NAME.jpg with NAME.json: text, is_sentence, shapes of label and points.

    Layout as LISA reads it. Areas labelled "ignore" become background, since records have no third value.
    """

    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Part of the data set.")] = "train"
    texts: Annotated[
        Literal["all", "first"],
        typer.Option(help="A record for each wording of a question, or for the first, as LISA evaluates."),
    ] = "all"

    def entries(self, report: Report) -> Iterator[Entry]:
        base = folder(self.root / self.split, "a split of ReasonSeg: pictures, each with its JSON")
        for image in report.track(files(base, ".jpg", ".jpeg", ".png")):
            with report.faults():
                path = image.with_suffix(".json")
                place = Place(str(path))
                data = read_document(path, "what is asked of the picture", fallback="cp1252")
                texts = field(data, "text", list, place)
                if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                    raise place.at("text").fault(texts, "at least one text")
                mask = _painted(field(data, "shapes", list, place), image_size(image), place.at("shapes"), report)
                target = mask_target([mask])
                for k, text in enumerate(texts if self.texts == "all" else texts[:1]):
                    id = f"reason-seg:{image.stem}/{k}"
                    if data.get("is_sentence"):
                        yield asked(id, image, worded(SENTENCES, id, text=text.strip()), [target])
                    else:
                        yield referring(id, image, text, [target])


def _painted(shapes: list[Any], size: Size, place: Place, report: Report) -> RLE:
    """The target's pixels, outlines too; polygons are painted largest first, so that a small one within wins."""
    import numpy as np
    from PIL import Image, ImageDraw

    from tpo_head_mask import rle

    polygons = []
    for k, shape in enumerate(shapes):
        at = place.at(k)
        label, points = field(shape, "label", str, at), field(shape, "points", list, at)
        if len(points) < 3 or not all(isinstance(p, list) and len(p) == 2 and all(map(is_number, p)) for p in points):
            raise at.at("points").fault(points, "three points [x, y] or more, in pixels")
        if "flag" in label.lower():
            continue
        xs, ys = np.array(points, dtype=float).T
        area = abs(float(np.dot(xs, np.roll(ys, 1)) - np.dot(ys, np.roll(xs, 1)))) / 2
        polygons.append((area, 0 if "ignore" in label.lower() else 1, [tuple(point) for point in points]))
    if not any(value for _, value, _ in polygons):
        raise place.fault(f"{len(shapes)} shapes", "at least one labelled 'target'")
    canvas = Image.new("L", size[::-1])
    for _, value, points in sorted(polygons, key=lambda item: -item[0]):
        ImageDraw.Draw(canvas).polygon(points, fill=value, outline=value)
        if not value:
            report.change("areas to ignore became background", place)
    mask = np.asarray(canvas) > 0
    if not mask.any():
        raise place.fault(f"{len(shapes)} shapes", f"a target within its picture of {size[1]} x {size[0]} pixels")
    return rle.encode(mask)


@dataclass(kw_only=True)
class Semantic(Format):
    """A semantic set (ADE20K, COCO-Stuff): a PNG of class numbers for each picture, and the classes' names.

    ADE20K: images/training and annotations/training, --first 1, --ignored 0. A record asks for all classes of a
    picture. Layout as LISA reads it.
    """

    heads = (HEAD,)

    images: Annotated[Path, typer.Argument(help="Folder of the pictures.")]
    maps: Annotated[Path, typer.Argument(help="Folder of the PNGs, by the pictures' names.")]
    classes: Annotated[Path, typer.Option(help="Names of the classes, one a line, in their order.")]
    first: Annotated[int, typer.Option(min=0, help="The first class's value in the PNGs.")] = 1
    ignored: Annotated[list[int], typer.Option(help="A value that is no class; repeatable.")] = field_of(
        default_factory=lambda: [0]
    )

    def entries(self, report: Report) -> Iterator[Entry]:
        names = [line.strip() for line in read_text(self.classes, "names of classes").splitlines() if line.strip()]
        known = {value: name for value, name in enumerate(names, start=self.first) if value not in self.ignored}
        if not known:
            raise tpo.RecordError("names no class; expected the name of one a line", file=str(self.classes))
        folder(self.maps, "the PNGs of class numbers")
        for image in report.track(files(folder(self.images, "the pictures"), ".jpg", ".jpeg", ".png")):
            with report.faults():
                path = self.maps / f"{image.stem}.png"
                found = label_masks([path], [image], {0, *self.ignored} if 0 not in known else self.ignored)
                unknown = sorted(set(found) - set(known))
                if unknown:
                    raise tpo.MediaError(f"{path}: holds the values {unknown}; expected {min(known)} to {max(known)}")
                if not found:
                    raise tpo.MediaError(f"{path}: holds no class")
                phrase = ", ".join(known[value] for value in sorted(found))
                targets = [mask_target(found[value]) for value in sorted(found)]
                yield referring(f"semantic:{image.stem}", image, phrase, targets)


@dataclass(kw_only=True)
class GranDf(Format):
    """GLaMM's GranD-f (GranDf_HA, OpenPsg): a list of file_name, caption and groundings by phrase.

    Layout as GLaMM reads it, never seen. The answer is the caption, with the masks of each phrase behind it.
    """

    heads = (HEAD,)

    source: Annotated[Path, typer.Argument(help="The annotations, a JSON list.")]
    images: Annotated[Path, typer.Option(help="Folder of the pictures.")]

    def entries(self, report: Report) -> Iterator[Entry]:
        root = Place(str(self.source))
        document = read_document(self.source, "the annotations of GranD-f")
        if not isinstance(document, list):
            raise root.fault(document, "a list of pictures with captions")
        for index, item in enumerate(report.track(document)):
            with report.faults():
                yield self._caption(index, item, root.at(index))

    def _caption(self, index: int, item: Any, place: Place) -> Entry:
        image = self.images / field(item, "file_name", str, place)
        caption = field(item, "caption", str, place).strip('"').strip()
        size, groundings = image_size(image), []
        for phrase, about in field(item, "groundings", dict, place).items():
            at = place.at("groundings", phrase)
            where, masks = field(about, "token_positives", list, at), field(about, "rle_masks", list, at)
            ascends = len(where) == 2 and all(type(n) is int for n in where) and 0 <= where[0] < where[1]
            if not ascends or where[1] > len(caption):
                raise at.at("token_positives").fault(where, f"[start, end] within the {len(caption)} characters")
            for k, mask in enumerate(masks):
                check_rle(mask, size, at.at("rle_masks", k))
            groundings.append((where, masks, at))
        groundings.sort(key=lambda grounding: grounding[0])
        text, done, tasks = "", 0, []
        for (start, end), masks, at in groundings:
            if start < done:
                raise at.at("token_positives").fault([start, end], f"no overlap with a phrase that ends at {done}")
            text += caption[done:end] + " <mask>" * len(masks)
            done = end
            tasks += [mask_target([mask]) for mask in masks]
        if not tasks:
            raise place.at("groundings").fault(item["groundings"], "at least one mask")
        id = f"grand-f:{Path(item['file_name']).stem}/{index}"
        return Entry(id, [worded(DESCRIBE, id), text + caption[done:]], tasks, images=[image])
