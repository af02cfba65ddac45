"""Images with mask PNGs in a folder: what people have.

    root/images/cat.jpg     root/masks/cat.png     root/objects.json

Without objects.json a PNG is 0 for background and one other value for the one object. With it, the PNG's values are
object ids, and objects.json gives the words for each: {"1": "the dog", "2": "the ball", "255": null}, where null is an
id to leave out. An id that it does not list makes that image a skipped one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import tpo_plugin as tpo
from tpo_head_mask.formats.common import (
    Sample,
    Skipped,
    files,
    folder,
    guarded,
    label_masks,
    mask_target,
    read_json,
    referring,
)

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def image_folder(root: Path, split: str | None) -> Iterator[Sample]:
    """Every object of every image is to be segmented."""
    if split is not None:
        raise tpo.TPOError(f"split {split!r} was given; a folder of images has none")
    images = files(folder(root / "images", "the images"), *IMAGES)
    masks = {path.stem: path for path in files(folder(root / "masks", "a PNG for each image, by its name"), ".png")}
    objects = _objects(root / "objects.json")
    for image in images:
        if image.stem in masks:
            yield from guarded(image.name, partial(_image, image, masks.pop(image.stem), objects))
        else:
            yield Skipped(image.name, f"{root / 'masks'}: holds no {image.stem}.png")
    for path in masks.values():
        yield Skipped(path.name, f"{root / 'images'}: holds no image of that name")


def _image(image: Path, path: Path, objects: dict[int, str | None] | None) -> Iterator[Sample]:
    masks = label_masks([path], [image])
    if not masks:
        raise tpo.MediaError(f"{path}: is empty: it holds no value but 0")
    if objects is None:
        if len(masks) > 1:
            raise tpo.MediaError(
                f"{path}: holds the object ids {sorted(masks)}; expected one value for the object, or the words for "
                "each id in objects.json"
            )
        yield referring(image.stem, image, "the object", [mask_target(next(iter(masks.values())))])
        return
    unknown = sorted(set(masks) - set(objects))
    if unknown:
        raise tpo.MediaError(f"{path}: holds the object ids {unknown}, which objects.json does not list")
    for number, frames in sorted(masks.items()):
        words = objects[number]
        if words is not None:
            yield referring(f"{image.stem}/{number}", image, words, [mask_target(frames)])


def _objects(path: Path) -> dict[int, str | None] | None:
    if not path.exists():
        return None
    data = read_json(path, "words for object ids")
    if not isinstance(data, dict) or not data:
        raise tpo.RecordError('expected an object like {"1": "the dog"}', file=str(path))
    for key, words in data.items():
        if not key.isdigit() or int(key) == 0 or not (words is None or (isinstance(words, str) and words.strip())):
            raise tpo.RecordError(
                f"is {words!r}; expected an id above 0 with its words, or null", file=str(path), field=key
            )
    return {int(key): words for key, words in data.items()}
