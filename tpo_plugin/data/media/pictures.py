"""Picture files of every mode that Pillow reads, as RGB with 8 bits a channel."""

from __future__ import annotations

import io
import logging
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Interval, Predicate, doc
from PIL import Image, ImageColor, ImageOps

from tpo_plugin.config import Config
from tpo_plugin.data.media.files import MAX_PIXELS, check_pixels, reading
from tpo_plugin.data.packed import Packed
from tpo_plugin.errors import MediaError

logger = logging.getLogger(__name__)

_PHOTOMETRIC = 262
"""The tag of a TIFF that says whether 0 is black (1) or white (0)."""
_BAND = 2**20
"""Pixels that are converted at once: a large picture is not held twice."""


def _is_colour(value: str) -> bool:
    try:
        return bool(ImageColor.getrgb(value))
    except ValueError:
        return False


@dataclass(kw_only=True, frozen=True)
class ImageOptions(Config):
    """How pictures are read."""

    background: Annotated[str, Predicate(_is_colour), doc("a colour, as 'white' or '#ff8000'")] = "white"
    """What is seen through the transparent parts of a picture."""
    max_pixels: Annotated[int, Interval(ge=1, le=2**27)] = MAX_PIXELS
    """Most pixels of a picture, width x height; a larger one is not opened."""


def read_image(path: str | Path | Packed, options: ImageOptions | None = None) -> Image.Image:
    """A picture, upright (its EXIF orientation applied), RGB with 8 bits a channel. Raises `MediaError`.

    What is transparent shows `options.background`. Of 16 bits the upper eight are taken: a value is divided by 256,
    whatever range the picture uses. A picture of floating-point numbers, or of integers beyond 16 bits, is refused:
    what is white in it is not known. Of an animated picture, or one of several pages, the first is taken, and a warning
    says so. Colours are not converted by an ICC profile, which stays in `info`.
    """
    options = options or ImageOptions()
    with reading(path, "an image"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's remarks on odd metadata
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels is the limit
        with Image.open(io.BytesIO(path.read()) if isinstance(path, Packed) else path) as image:
            check_pixels(
                "a picture",
                *image.size,
                options.max_pixels,
                "make it smaller, or raise max_pixels (data.image.max_pixels)",
            )
            number = getattr(image, "n_frames", 1)
            if number > 1 and image.format != "MPO":  # a photo with its previews
                _say_first(str(path), number)
            zero_is_white = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]
            return _as_rgb(ImageOps.exif_transpose(image), options.background, zero_is_white)


@lru_cache(maxsize=4096)
def _say_first(path: str, num: int) -> None:
    logger.warning("%s: holds %d pictures, the first is taken; give it as a video where all are meant", path, num)


def _as_rgb(image: Image.Image, background: str, zero_is_white: bool) -> Image.Image:
    """The picture as RGB, converted band by band. Where 0 is white, Pillow turns eight bits over, but not sixteen."""
    image.load()
    see_through = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if image.mode == "RGB" and not see_through:
        return image
    if image.mode == "F" or image.mode == "I":
        _check_range(image)
    converted = Image.new("RGB", image.size, background)
    rows = max(1, _BAND // max(image.width, 1))
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        if band.mode.startswith("I"):
            grey, mask = _eight_bits(band)
            grey = ImageOps.invert(grey) if zero_is_white else grey
            converted.paste(grey, (0, top), mask)
        elif see_through:
            clear = band.convert("RGBA")
            converted.paste(clear.convert("RGB"), (0, top), clear.getchannel("A"))
        else:
            converted.paste(band.convert("RGB"), (0, top))
    for name in ("icc_profile", "dpi"):
        if name in image.info:
            converted.info[name] = image.info[name]
    return converted


def _eight_bits(band: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Grey of 16 bits as grey of eight; and where it is seen, for a picture one of whose values is transparent."""
    values = np.asarray(band)
    grey = Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    clear = band.info.get("transparency")
    return grey, None if clear is None else Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))


def _check_range(image: Image.Image) -> None:
    low, high = (float(value) for value in image.getextrema())  # type: ignore[arg-type]  # of one channel
    if image.mode == "F":
        raise MediaError(
            f"holds floating-point numbers from {low:.6g} to {high:.6g}, and what is white is not known; save it with "
            "8 or 16 bits a channel"
        )
    if low < 0 or high >= 2**16:
        raise MediaError(f"holds integers from {low:.0f} to {high:.0f}; expected at most 16 bits, 0 to 65535")
