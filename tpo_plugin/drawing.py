"""What the heads found, drawn on a picture, or on a whole clip in files of their own.

Text is drawn in Pillow's own font, which has Latin letters alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from tpo_plugin.data import VideoClip
    from tpo_plugin.generation.answers import Prediction
    from tpo_plugin.head import TaskHead

LEGIBLE_SIDE = 640
"""Pixels of the longer side that a picture is drawn at, at least."""
_INK, _PAPER = "#1b1f24", "#ffffff"


@dataclass(frozen=True, eq=False)
class Found:
    """A value of a head, with what is written beside it."""

    head: str
    value: Any
    label: str = ""


@dataclass
class Drawing:
    """What was drawn, and why something was not."""

    files: dict[Path, list[Found]] = field(default_factory=dict)
    """Each with what is on it."""
    undrawn: list[str] = field(default_factory=list)
    """A sentence for each value that is not to be seen, or for each head that does not draw."""


def found_in(predictions: Sequence[Prediction]) -> list[Found]:
    """The predictions of an answer that have a value, each labelled by its head and its score, and its number where
    there are several. The score is the head's own; where it has none, the probability of its trigger."""
    told = [prediction for prediction in predictions if prediction.value is not None]
    found = []
    for number, prediction in enumerate(told, 1):
        score = prediction.score if prediction.head_score is None else prediction.head_score
        parts = (str(number) if len(told) > 1 else "", prediction.head, "" if score is None else f"{score:.2f}")
        found.append(Found(prediction.head, prediction.value, " ".join(filter(None, parts))))
    return found


def draw(
    heads: Mapping[str, TaskHead],
    found: Sequence[Found],
    picture: Image,
    clip: VideoClip | None,
    output: Path,
    *,
    caption: str = "",
) -> Drawing:
    """Writes `output` with all that belongs to one picture, and for a head that draws a whole clip a file of its own.

    Where there is only one file, it has the stem of `output`; others end in their head's name. A picture is a PNG where
    `output` has the suffix of something else, a video's. `caption` stands below the picture.
    """
    names = list(dict.fromkeys(each.head for each in found))
    drawing, on_picture = Drawing(), []
    for name in names:
        of_head = [each for each in found if each.head == name]
        stem = output.with_name(output.stem if len(names) == 1 else f"{output.stem}_{name}")
        file = heads[name].draw_video(clip, [each.value for each in of_head], stem) if clip is not None else None
        if file is None:
            on_picture += of_head
        else:
            drawing.files[file] = of_head
    if on_picture or not found:
        drawn, drawing.undrawn = draw_on(heads, on_picture, picture)
        output = output if _holds_pictures(output) else output.with_suffix(".png")
        _captioned(drawn, caption).save(output)
        drawing.files[output] = on_picture
    return drawing


def draw_on(heads: Mapping[str, TaskHead], found: Sequence[Found], picture: Image) -> tuple[Image, list[str]]:
    """The picture, at least `LEGIBLE_SIDE` large, with the values and their labels; and what `Drawing.undrawn` says."""
    from PIL import ImageChops

    picture = drawn = enlarged(picture)
    undrawn: list[str] = []
    places: list[tuple[tuple[int, int, int, int], str]] = []
    for each in found:
        if not draws_pictures(heads[each.head]):
            why = "draws whole clips alone" if draws_clips(heads[each.head]) else "does not draw"
            undrawn.append(f"{each.label or each.head}: head {each.head!r} {why}")
            continue
        alone = heads[each.head].draw(picture, each.value).convert("RGB")
        place = ImageChops.difference(picture, alone).getbbox()
        if place is None:
            undrawn.append(f"{each.label or each.head}: head {each.head!r} marks nothing in this picture")
            continue
        places.append((place, each.label))
        drawn = heads[each.head].draw(drawn, each.value).convert("RGB")
    drawn = drawn.copy()
    _write_labels(drawn, places)
    return drawn, list(dict.fromkeys(undrawn))


def draws_pictures(head: TaskHead) -> bool:
    """Whether the head draws on a picture."""
    from tpo_plugin.head import TaskHead

    return type(head).draw is not TaskHead.draw


def draws_clips(head: TaskHead) -> bool:
    """Whether the head draws whole clips."""
    from tpo_plugin.head import TaskHead

    return type(head).draw_video is not TaskHead.draw_video


def enlarged(picture: Image, side: int = LEGIBLE_SIDE) -> Image:
    """A copy, RGB, whose longer side has at least so many pixels."""
    factor = max(1.0, side / max(picture.size))
    width, height = (max(1, round(length * factor)) for length in picture.size)
    return picture.convert("RGB").resize((width, height))


def _write_labels(picture: Image, places: Iterable[tuple[tuple[int, int, int, int], str]]) -> None:
    """Writes each label at the upper left of what it belongs to, beside those before it."""
    from PIL import ImageDraw, ImageFont

    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(max(15, max(picture.size) // 42))
    taken: list[tuple[int, int, int, int]] = []
    for (left, top, _, _), label in places:
        if not label:
            continue
        text = pen.textbbox((0, 0), label, font=font)
        width, height = int(text[2]) + 10, int(text[3]) + 8
        x = max(0, min(left, picture.width - width))
        y = top - height if top >= height else top
        while any(x < t[2] and x + width > t[0] and y < t[3] and y + height > t[1] for t in taken):
            y += height  # below those that are there
        taken.append((x, y, x + width, y + height))
        pen.rectangle(taken[-1], fill=_INK)
        pen.text((x + 5, y + 3), label, fill=_PAPER, font=font)


def _captioned(picture: Image, caption: str) -> Image:
    """The picture with a text below it, in as many lines as it takes."""
    from PIL import Image as PIL
    from PIL import ImageDraw, ImageFont

    if not caption:
        return picture
    size = max(16, picture.width // 36)
    font = ImageFont.load_default(size)
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > picture.width - 20:
            lines.append(word)
        else:
            lines[-1] = longer
    step = round(1.4 * size)
    page = PIL.new("RGB", (picture.width, picture.height + step * len(lines) + 14), _PAPER)
    page.paste(picture, (0, 0))
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        pen.text((10, picture.height + 7 + number * step), line, fill=_INK, font=font)
    return page


def _holds_pictures(path: Path) -> bool:
    from PIL import Image

    Image.init()
    return Image.registered_extensions().get(path.suffix.lower()) in Image.SAVE
