"""How large a picture is, and whether boxes of it sit on the stored or on the shown one. Only headers are read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

from tpo_plugin.convert.format import StoredPicture
from tpo_plugin.convert.report import Place
from tpo_plugin.errors import MediaError

Side = Literal["stored", "shown"]
"""Which picture annotations belong to: as its pixels are stored, or as its EXIF orientation turns it to be shown."""

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Picture:
    """A picture as its annotations see it."""

    medium: Path | StoredPicture
    width: int
    height: int
    """In pixels, of the picture on which the boxes sit."""
    orientation: int = 1
    """EXIF's, 1 to 8, that boxes have to be turned by, to fit what is shown."""

    def turned(self, box: list[float]) -> list[float]:
        """A box in 0 to 1 of the picture, xyxy, as it sits on the shown one."""
        x1, y1, x2, y2 = box
        if self.orientation in (2, 3, 7, 8):
            x1, x2 = 1 - x2, 1 - x1
        if self.orientation in (3, 4, 6, 7):
            y1, y2 = 1 - y2, 1 - y1
        return [y1, x1, y2, x2] if self.orientation >= 5 else [x1, y1, x2, y2]


def picture(
    medium: Path | StoredPicture,
    place: Place,
    stated: tuple[int, int] | None = None,
    boxes_on: Side | None = None,
) -> Picture:
    """The picture that an annotation at `place` is about; `stated` is its width and height, where the source has them.

    Raises `MediaError` where it cannot be read; `Fault` where it is not of the stated size (a resized copy), or has an
    EXIF orientation and neither the size nor `boxes_on` says which picture the boxes belong to.
    """
    stored, orientation = _header(medium)
    shown = stored[::-1] if orientation >= 5 else stored
    given = None if stated is None else f"{stated[0]} x {stated[1]}"
    if stated is not None and stated not in (stored, shown):
        size = f"{stored[0]} x {stored[1]}"
        raise place.fault(given, f"{size}, the size of {medium.name}; boxes of a resized copy do not fit")
    if orientation == 1:
        return Picture(medium, *stored)
    if boxes_on is None and stored != shown and stated == shown:
        boxes_on = "shown"
    if boxes_on is None:
        raise place.fault(
            f"of {medium.name}, which EXIF turns (orientation {orientation}, stored {stored[0]} x {stored[1]})",
            "--boxes-on stored or --boxes-on shown, to say which of the two the boxes belong to",
        )
    size_on = stored if boxes_on == "stored" else shown
    if stated is not None and stated != size_on:
        raise place.fault(given, f"{size_on[0]} x {size_on[1]}, the size of the {boxes_on} picture (--boxes-on)")
    return Picture(medium, *stored, orientation) if boxes_on == "stored" else Picture(medium, *shown)


def picture_type(data: bytes, name: str) -> str:
    """The suffix of a picture file's content. Raises `MediaError` where it is no picture."""
    from PIL import Image

    with _opening(name), Image.open(BytesIO(data)) as image:
        return (image.format or "png").lower()


def _header(medium: Path | StoredPicture) -> tuple[tuple[int, int], int]:
    """(width, height) as stored, and the EXIF orientation, 1 where there is none."""
    from PIL import Image

    name, source = (str(medium), medium) if isinstance(medium, Path) else (medium.name, BytesIO(medium.data))
    with _opening(name), Image.open(source) as image:
        # A PNG without EXIF before its pixels would be decoded whole to look behind them.
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        orientation = exif.get(_ORIENTATION, 1)
        return image.size, orientation if orientation in range(1, 9) else 1


@contextmanager
def _opening(name: str) -> Iterator[None]:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except FileNotFoundError as error:
        raise MediaError(f"{name}: no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"{name}: cannot be read as an image: {error}") from error
