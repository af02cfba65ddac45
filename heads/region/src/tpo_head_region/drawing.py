"""Boxes over pictures. No torch in here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw

PREDICTED, TRUE = "#ff8c00", "#1e90ff"


def draw_boxes(image: Image.Image, boxes: Iterable[tuple[Sequence[float], str]], *, bold: bool = False) -> Image.Image:
    """A copy of `image`, RGB, with boxes [x1, y1, x2, y2] (0 to 1), each in its colour; bold where it is made small."""
    drawn = image.convert("RGB") if image.mode != "RGB" else image.copy()
    pen = ImageDraw.Draw(drawn)
    line = max(1, min(image.size) // (60 if bold else 120))
    for box, colour in boxes:
        shares = box.tolist() if hasattr(box, "tolist") else box
        x1, y1, x2, y2 = (
            round(share * (side - 1)) for share, side in zip(shares, (*image.size, *image.size), strict=True)
        )
        pen.rectangle([x1 - 1, y1 - 1, x2 + 1, y2 + 1], outline="black", width=line + 2)  # legible on any background
        pen.rectangle([x1, y1, x2, y2], outline=colour, width=line)
    return drawn
