"""What the formats of this package share: pictures in a folder, and a question about boxes of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import tpo_plugin as tpo
from tpo_head_region.formats.wordings import MANY, NOTHING, ONE, WHERE
from tpo_plugin.convert import Entry, Format, Place, Side, StoredPicture, worded

HEAD = "region"


@dataclass(kw_only=True)
class PictureFormat(Format):
    """A source whose pictures are files in a folder."""

    heads = (HEAD,)

    pictures: Annotated[Path, typer.Option(help="Folder of the pictures.")]
    boxes_on: Annotated[
        Side | None,
        typer.Option(help="Of pictures that EXIF turns: whether their boxes fit them as stored, or as shown."),
    ] = None

    def find(self, *names: str) -> Path:
        """The first of these files that the folder holds, with all of its own folders, or without the first ones.

        Raises `MediaError`.
        """
        for name in names:
            parts = Path(name).parts
            for start in range(len(parts)):
                if (path := self.pictures.joinpath(*parts[start:])).is_file():
                    return path
        raise tpo.MediaError(f"{self.pictures / names[0]}: no such file")


def task(boxes: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The task of one placeholder: its boxes, xyxy in 0 to 1, each rounded to a millionth."""
    return {"head": HEAD, "boxes": [[round(value, 6) for value in box] for box in boxes]}


def in_order(boxes: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """From left to right, then from top to bottom: an answer with several boxes needs one order."""
    return sorted(boxes, key=lambda box: (box[0], box[1]))


def expression(text: str, place: Place) -> str:
    """A referring expression, to stand in a sentence. Raises `Fault` where there is none."""
    cleaned = " ".join(text.split()).rstrip(".")
    if not cleaned:
        raise place.fault(text, "words")
    return cleaned


def referring(
    id: str, phrase: str, boxes: Sequence[Sequence[float]], image: Path | StoredPicture, **more: Any
) -> Entry:
    """A question by an expression; without a box the answer is that nothing fits."""
    question = worded(WHERE, id, name=phrase)
    if not boxes:
        return Entry(id, [question, worded(NOTHING, id)], images=[image], **more)
    answer = worded(ONE if len(boxes) == 1 else MANY, id)
    return Entry(id, [question, answer], [task(in_order(boxes))], images=[image], **more)
