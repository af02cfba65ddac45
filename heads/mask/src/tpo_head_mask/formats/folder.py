"""Images with mask PNGs in a folder: what people have.

    root/images/cat.jpg     root/masks/cat.png     root/objects.json, or root/questions.jsonl

Without either file a PNG is 0 for background and one other value for the one object. With objects.json, the PNG's
values are object ids, and it gives the words for each: {"1": "the dog", "2": "the ball", "255": null}, where null is an
id to leave out. An id that it does not list makes that image one that is left out. With questions.jsonl a record is
what a line asks: {"image": "cat.jpg", "question": "Which animal would purr?", "objects": [1]}; `objects`, the ids that
answer it, may be missing where the PNG holds one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tpo_plugin as tpo
from tpo_head_mask.formats.common import (
    Frames,
    Masks,
    asked,
    files,
    folder,
    label_masks,
    mask_target,
    read_document,
    referring,
    whole_number,
)
from tpo_plugin.convert import Entry, Report, Row, Rows

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class _Question(Row):
    """A line of questions.jsonl."""

    image: str
    question: str
    objects: list[int] | None = None


@dataclass(kw_only=True)
class Folder(Masks):
    """A folder of your own: images/, masks/ (a PNG by each image's name), and objects.json or questions.jsonl.

    objects.json gives words for the PNGs' values: {"1": "the dog", "255": null}. questions.jsonl has a question a line:
    {"image": "cat.jpg", "question": "Which animal would purr?", "objects": [1]}. Without either, a PNG holds one object
    and the question names it so.
    """

    def entries(self, report: Report) -> Iterator[Entry]:
        images = files(folder(self.root / "images", "the images"), *IMAGES)
        pngs = files(folder(self.root / "masks", "a PNG for each image, by its name"), ".png")
        masks = {path.stem: path for path in pngs}
        questions = self.root / "questions.jsonl"
        if questions.exists():
            if (self.root / "objects.json").exists():
                raise tpo.TPOError(f"{self.root}: holds objects.json and questions.jsonl; expected one of them")
            yield from self._questions(Rows(questions), {image.name: image for image in images}, masks, report)
            return
        objects = _objects(self.root / "objects.json")
        for image in report.track(images):
            with report.faults():
                if image.stem not in masks:
                    raise tpo.MediaError(f"{image.name}: {self.root / 'masks'} holds no {image.stem}.png")
                yield from _image(image, masks.pop(image.stem), objects)
        for path in masks.values():
            with report.faults():
                raise tpo.MediaError(f"{path.name}: {self.root / 'images'} holds no image of that name")

    def _questions(
        self, rows: Rows, images: dict[str, Path], masks: dict[str, Path], report: Report
    ) -> Iterator[Entry]:
        unasked = dict(images)
        for index in report.track(range(len(rows))):
            place = rows.place(index)
            with report.faults():
                row = _Question.read(rows[index], place)
                image = images.get(row.image)
                if image is None:
                    raise place.at("image").fault(row.image, "the name of a picture in images/")
                unasked.pop(row.image, None)
                if image.stem not in masks:
                    raise tpo.MediaError(f"{image.name}: {self.root / 'masks'} holds no {image.stem}.png")
                found = _masks(image, masks[image.stem])
                if row.objects is None and len(found) > 1:
                    raise place.fault(None, f"objects: which of the ids {sorted(found)} answer the question")
                chosen = row.objects if row.objects is not None else list(found)
                if not chosen or not set(chosen) <= set(found):
                    raise place.at("objects").fault(chosen, f"ids that {image.stem}.png holds, of {sorted(found)}")
                targets = [mask_target(found[number]) for number in chosen]
                yield asked(f"folder:{image.stem}/{index + 1}", image, row.question, targets)
        for name in unasked:
            report.leave_out("no question is about the picture", name)


def _image(image: Path, path: Path, objects: dict[int, str | None] | None) -> Iterator[Entry]:
    masks = _masks(image, path)
    if objects is None:
        if len(masks) > 1:
            raise tpo.MediaError(
                f"{path}: holds the object ids {sorted(masks)}; expected one value for the object, or the words for "
                "each id in objects.json"
            )
        yield referring(f"folder:{image.stem}", image, "the object", [mask_target(next(iter(masks.values())))])
        return
    unknown = sorted(set(masks) - set(objects))
    if unknown:
        raise tpo.MediaError(f"{path}: holds the object ids {unknown}, which objects.json does not list")
    for number, frames in sorted(masks.items()):
        words = objects[number]
        if words is not None:
            yield referring(f"folder:{image.stem}/{number}", image, words, [mask_target(frames)])


def _masks(image: Path, path: Path) -> dict[int, Frames]:
    masks = label_masks([path], [image])
    if not masks:
        raise tpo.MediaError(f"{path}: is empty: it holds no value but 0")
    return masks


def _objects(path: Path) -> dict[int, str | None] | None:
    if not path.exists():
        return None
    data = read_document(path, "words for object ids")
    if not isinstance(data, dict) or not data:
        raise tpo.RecordError('expected an object like {"1": "the dog"}', file=str(path))
    for key, words in data.items():
        if not whole_number(key) or not (words is None or (isinstance(words, str) and words.strip())):
            raise tpo.RecordError(
                f"is {words!r}; expected an id above 0 with its words, or null", file=str(path), field=key
            )
    return {int(key): words for key, words in data.items()}
