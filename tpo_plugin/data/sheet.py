"""A contact sheet: a sample of records with their tasks drawn over their media, so that one sees whether they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tpo_plugin.data.format import RecordFormat
from tpo_plugin.data.media import ImageOptions, VideoOptions
from tpo_plugin.data.opening import RecordSource
from tpo_plugin.data.records import MEDIA_TAG, Record, read_record
from tpo_plugin.errors import MediaError, RecordError, TPOError

MOST = 24
"""Records on a sheet."""
_TRIED = 20_000
"""Records that are looked at to find these."""

_WIDTH, _MARGIN, _GAP, _HEIGHT = 1600, 40, 24, 250
"""Pixels: of the page, its margin, between cards, and of a picture on a card."""
_LEAST = 300
"""Pixels: width of a card at least, for its words."""
_INK, _FAINT, _PAPER, _CARD, _ALARM = "#1b1f24", "#6b7280", "#ffffff", "#f4f5f7", "#b42318"


@dataclass
class Sheet:
    """What came of it."""

    drawn: int = 0
    """Records on the sheet."""
    failed: list[str] = field(default_factory=list)
    """Reasons, with their places, for records that are on it without a picture."""
    silent: list[str] = field(default_factory=list)
    """Heads that draw no tasks."""


@dataclass
class _Card:
    place: str
    lines: list[str]
    pictures: list[Image.Image]
    alarm: str = ""

    @property
    def aspect(self) -> float:
        return sum(picture.width / picture.height for picture in self.pictures)


def write_sheet(
    path: str | Path,
    files: Sequence[tuple[str, RecordSource, Path]],
    format: RecordFormat,
    *,
    video: VideoOptions | None = None,
    image: ImageOptions | None = None,
    open_ended: bool = False,
    confine: bool = False,
) -> Sheet:
    """Draws a sample of the records with tasks of files, each with its name and media folder; the same every time.

    A record that breaks the format is left to `check_files`; one whose media fail is on the sheet with the reason.
    `open_ended` and `confine` are those of `Records`: of a record that is refused no file is opened. Raises `TPOError`
    where no record has a task, or `path` is not to be written.
    """
    sheet, cards, silent = Sheet(), [], dict[str, None]()
    for record in _sample(files, format, open_ended=open_ended, confine=confine):
        card = _card(record, format, video, image, silent)
        cards.append(card)
        sheet.drawn += 1
        if card.alarm:
            sheet.failed.append(f"{card.place}: {card.alarm}")
    if not cards:
        raise TPOError(f"{path}: no record with a task was found to draw")
    sheet.silent = list(silent)
    names = ", ".join(Path(name).name for name, *_ in files)
    total = sum(len(data) for _, data, _ in files)
    page = _Page(names, f"{sheet.drawn} of {total:,} records")
    page.add(cards)
    try:
        page.image().save(path)
    except (OSError, ValueError) as error:
        raise TPOError(f"{path}: cannot be written: {error}; expected the path of a .png or .jpg") from error
    return sheet


def _sample(
    files: Sequence[tuple[str, RecordSource, Path]], format: RecordFormat, *, open_ended: bool, confine: bool
) -> list[Record]:
    starts = np.cumsum([0, *(len(data) for _, data, _ in files)])
    found: dict[int, Record] = {}
    for place in np.random.default_rng(0).permutation(int(starts[-1]))[:_TRIED].tolist():
        number = int(np.searchsorted(starts, place, side="right")) - 1
        name, data, media_root = files[number]
        try:
            index = place - int(starts[number])
            record = read_record(data, index, format, media_root, name, open_ended=open_ended, confine=confine)
        except RecordError:
            continue
        if any(turn.tasks for turn in record.turns):
            found[place] = record
            if len(found) == MOST:
                break
    return [found[place] for place in sorted(found)]


def _card(
    record: Record,
    format: RecordFormat,
    video: VideoOptions | None,
    image: ImageOptions | None,
    silent: dict[str, None],
) -> _Card:
    from tpo_plugin.data.dataset import read_sample

    words = [f"{'Q' if turn.role == 'user' else 'A'}: {_words(turn.text, format)}" for turn in record.turns]
    card = _Card(Path(record.place).name, [line for line in words if line[3:]], [])
    given, tasks = (
        [task for turn in record.turns if (turn.role == "user") == own for task in turn.tasks] for own in (True, False)
    )
    try:
        sample = read_sample(record, video, image)
        for name in dict.fromkeys(task["head"] for task in [*given, *tasks]):
            mine = [[task for task in some if task["head"] == name] for some in (tasks, given)]
            pictures = format.codecs[name].draw_tasks(mine[0], mine[1], sample)
            card.pictures += pictures
            if not pictures:
                silent[name] = None
                card.lines.append(f"head {name!r} does not draw its tasks")
    except (MediaError, ValueError, LookupError) as error:
        card.alarm = str(error)
    return card


def _words(text: str, format: RecordFormat) -> str:
    """A turn with [head] for the tokens of each task, without tags of media."""
    for name, tokens in format.tokens.items():
        text = text.replace(tokens.trigger + tokens.task_token, f"[{name}]")
        if tokens.input_token:
            text = text.replace(tokens.input_token, f"[{name}]")
    return " ".join(MEDIA_TAG.sub(" ", text).split())


class _Page:
    """A page that grows downwards, row by row."""

    def __init__(self, title: str, subtitle: str) -> None:
        self._rows: list[Image.Image] = []
        head = Image.new("RGB", (_WIDTH, 96), _PAPER)
        pen = ImageDraw.Draw(head)
        pen.text((_MARGIN, 32), _cut(title, 30, _WIDTH - 2 * _MARGIN - 300), fill=_INK, font=_font(30))
        pen.text((_WIDTH - _MARGIN, 42), subtitle, fill=_FAINT, font=_font(20), anchor="ra")
        self._rows.append(head)

    def add(self, cards: Sequence[_Card]) -> None:
        for row in _rows(cards):
            self._rows.append(_row(row))

    def image(self) -> Image.Image:
        page = Image.new("RGB", (_WIDTH, sum(row.height for row in self._rows) + _MARGIN - _GAP), _PAPER)
        top = 0
        for row in self._rows:
            page.paste(row, (0, top))
            top += row.height
        return page


def _rows(cards: Sequence[_Card]) -> Iterator[list[_Card]]:
    """Cards that fit side by side at about the same height of their pictures."""
    row: list[_Card] = []
    used = 0.0
    for card in cards:
        width = max(_LEAST, _HEIGHT * card.aspect) + _GAP
        if row and used + width > (_WIDTH - 2 * _MARGIN + _GAP) * 1.08:
            yield row
            row, used = [], 0.0
        row.append(card)
        used += width
    if row:
        yield row


def _row(cards: Sequence[_Card]) -> Image.Image:
    """One row; its cards share the width by that of their pictures."""
    room = _WIDTH - 2 * _MARGIN - _GAP * (len(cards) - 1)
    wanted = [max(_LEAST, _HEIGHT * card.aspect) for card in cards]
    scale = min(1.5 if all(card.pictures for card in cards) else 1.0, room / sum(wanted))
    drawn = [_drawn(card, round(width * scale)) for card, width in zip(cards, wanted, strict=True)]
    height = max(image.height for image in drawn)
    row = Image.new("RGB", (_WIDTH, height + _GAP), _PAPER)
    left = _MARGIN
    for image in drawn:
        card = Image.new("RGB", (image.width, height), _CARD)
        card.paste(image)
        row.paste(card, (left, 0), _rounded(card.size))
        left += image.width + _GAP
    return row


def _drawn(card: _Card, width: int) -> Image.Image:
    """A card: its pictures side by side in one height, its place, and what is asked and answered."""
    room = width - 2 * (len(card.pictures) - 1)
    height = min(round(room / card.aspect), round(1.6 * _HEIGHT)) if card.pictures else 0
    image = Image.new("RGB", (width, height + 400), _CARD)
    left = (width - round(height * card.aspect) - 2 * (len(card.pictures) - 1)) // 2 if card.pictures else 0
    for picture in card.pictures:
        size = max(1, round(height * picture.width / picture.height)), height
        image.paste(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), (left, 0))
        left += size[0] + 2
    pen, y = ImageDraw.Draw(image), height + 12
    pen.text((14, y), _cut(card.place, 14, width - 28), fill=_FAINT, font=_font(14))
    y += 24
    for text, fill in [*((line, _INK) for line in card.lines[:4]), *([(card.alarm, _ALARM)] if card.alarm else [])]:
        for line in _wrapped(text, 16, width - 28, 2 if fill == _INK else 4):
            pen.text((14, y), line, fill=fill, font=_font(16))
            y += 22
    if len(card.lines) > 4:
        pen.text((14, y), f"and {len(card.lines) - 4} more turns", fill=_FAINT, font=_font(14))
        y += 22
    return image.crop((0, 0, width, y + 12))


def _rounded(size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), radius=10, fill=255)
    return mask


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _wrapped(text: str, size: int, width: int, most: int) -> list[str]:
    """The text in at most so many lines of a width in pixels."""
    font, lines, line = _font(size), [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [_cut(line, size, width) for line in lines]


def _cut(text: str, size: int, width: float) -> str:
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1].rstrip()
    return text + "…"
