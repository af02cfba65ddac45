"""A prediction in time as a picture: thumbnails, the saliency curve, predicted and true spans, an axis of seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import tpo_plugin as tpo

WIDTH, MARGIN, GUTTER = 1280, 32, 116
"""Pixels; the gutter on the left holds the names of the lanes."""
INK, FAINT, PAPER, LANE = "#1b1f24", "#6b7280", "#ffffff", "#eef0f3"
PREDICTED, WEAKER, TRUE, CURVE = "#e8710a", "#f6b26b", "#1a73e8", "#7b3fb8"
MAX_PREDICTED = 3
"""Predicted spans that get a lane each; the rest is left out of the picture, and said so."""

Value = Mapping[str, Any]

_SCALE = 2
"""Drawn this much larger, then made smaller: smooth lines."""


def draw_timeline(
    video: tpo.VideoClip, value: Value | Sequence[Value], target: Value | None = None, *, path: Path, title: str = ""
) -> Path:
    """Writes `render_timeline` of a prediction, or of several one below the other, as `path` with the suffix .png."""
    values = [value] if isinstance(value, Mapping) else value
    pictures = [render_timeline(video, each, target, title=title) for each in values]
    page = Image.new("RGB", (WIDTH, sum(picture.height for picture in pictures)), PAPER)
    top = 0
    for picture in pictures:
        page.paste(picture, (0, top))
        top += picture.height
    path = path.with_name(path.name + ".png")
    page.save(path)
    return path


def render_timeline(
    video: tpo.VideoClip, value: Value | None, target: Value | None = None, *, title: str = ""
) -> Image.Image:
    """The whole video from left to right, RGB, 1280 pixels wide.

    `value` has `spans_s` [K, 2], the best first, and may have their `scores` [K], and `saliency` [F] at `times_s` [F]
    on any scale: the curve fills its height from the least to the greatest. `target` has the true `spans_s` (or
    `spans`, as a record's task). Without a value only what is true is drawn, its `saliency` too. A thumbnail shows what
    is on screen at its middle, as far as the clip's frames tell.
    """
    true = None if target is None else target["spans_s"] if "spans_s" in target else target["spans"]
    if value is None:
        value, curve = {}, _array((target or {}).get("saliency", ()))
        if len(curve):
            seconds = (target or {}).get("clip_s") or video.duration_s / len(curve)
            value = {"saliency": curve, "times_s": (np.arange(len(curve)) + 0.5) * seconds}
    return _Timeline(video, title).draw(
        None if "spans_s" not in value else _array(value["spans_s"]).reshape(-1, 2),
        None if value.get("scores") is None else _array(value["scores"]),
        None if value.get("saliency") is None else (_array(value["times_s"]), _array(value["saliency"])),
        None if true is None else _array(true).reshape(-1, 2),
    )


class _Timeline:
    """A canvas that grows downwards, lane by lane."""

    def __init__(self, clip: tpo.VideoClip, title: str) -> None:
        self.clip, self.title = clip, title
        self.duration_s = max(clip.duration_s, 1e-3)
        self.left, self.right = GUTTER, WIDTH - MARGIN
        self.canvas = Image.new("RGB", (WIDTH * _SCALE, 1200 * _SCALE), PAPER)
        self.pen = ImageDraw.Draw(self.canvas)
        self.y = 24.0

    def draw(
        self,
        spans: np.ndarray | None,
        scores: np.ndarray | None,
        saliency: tuple[np.ndarray, np.ndarray] | None,
        true: np.ndarray | None,
    ) -> Image.Image:
        if self.title:
            self._text(self.left, self.y, _shortened(self.title, self._font(19), self.right - self.left), 19)
            self.y += 36
        self._thumbnails()
        if saliency is not None and len(saliency[0]):
            edges = [] if true is None else [(span, TRUE) for span in true]
            self._curve(*saliency, edges + [(span, PREDICTED) for span in (() if spans is None else spans[:1])])
        if true is not None:
            self._lane("true", [(span, TRUE, _seconds(span)) for span in true])
        if spans is not None:
            self._predicted(spans, scores)
        self._axis()
        height = math.ceil(self.y)
        page = self.canvas.crop((0, 0, WIDTH * _SCALE, height * _SCALE))
        return page.resize((WIDTH, height), Image.Resampling.LANCZOS)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _thumbnails(self) -> None:
        """As many as fit side by side in the frames' own shape."""
        room = self.right - self.left
        count = max(1, round(room / (92 * self.clip.width / max(self.clip.height, 1))))
        width = room / count
        height = min(92, width * self.clip.height / self.clip.width)
        for i in range(count):
            middle_s = (i + 0.5) * self.duration_s / count
            index = max(0, int(np.searchsorted(self.clip.times_s, middle_s + 1e-6, side="right")) - 1)
            left, right = (round((self.left + edge * width) * _SCALE) for edge in (i, i + 1))
            gap = _SCALE if i < count - 1 else 0
            size = (max(1, right - left - gap), max(1, round(height * _SCALE)))
            picture = Image.fromarray(self.clip.frames[index]).resize(size, Image.Resampling.LANCZOS)
            self.canvas.paste(picture, (left, round(self.y * _SCALE)))
        self.y += height + 14

    def _curve(self, times_s: np.ndarray, values: np.ndarray, edges: list[tuple[np.ndarray, str]]) -> None:
        """A line through the values, the area below it, and the spans' starts and ends over it."""
        height = 84
        low, high = float(values.min()), float(values.max())
        shares = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
        top, bottom = self.y + 6, self.y + height - 4
        self._box(self.left, self.y, self.right, self.y + height, LANE)
        points = [(self._x(t), bottom - share * (bottom - top)) for t, share in zip(times_s, shares, strict=True)]
        points = [(self.left, points[0][1]), *points, (self.right, points[-1][1])]
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        floor = (self.y + height) * _SCALE
        self.pen.polygon([*scaled, (self.right * _SCALE, floor), (self.left * _SCALE, floor)], fill="#e3d5f2")
        self.pen.line(scaled, fill=CURVE, width=2 * _SCALE, joint="curve")
        for span, colour in edges:
            for time_s in span:
                self._line(self._x(time_s), self.y, self._x(time_s), self.y + height + 10, colour)
        self._name("saliency", self.y + 26)
        self._text(self.left - 12, self.y + 46, f"{low:.2f} to {high:.2f}", 12, FAINT, anchor="ra")
        self.y += height + 10

    def _lane(self, name: str, bars: list[tuple[np.ndarray, str, str]]) -> None:
        """Bars of spans on one line, each with its label inside, or beside it where it is short."""
        height = 26
        self._box(self.left, self.y, self.right, self.y + height, LANE)
        font = self._font(14)
        taken: list[tuple[float, float]] = []
        for span, colour, _ in bars:
            first, last = self._x(span[0]), self._x(span[1])
            last = max(last, first + 3)  # a span without length is seen too
            self._box(first, self.y, last, self.y + height, colour)
            taken.append((first, last))
        for (first, last), (_, colour, label) in zip(taken.copy(), bars, strict=True):
            width = font.getlength(label) / _SCALE + 12
            if width <= last - first:
                fill = INK if colour == WEAKER else PAPER
                self._text((first + last - width) / 2 + 6, self.y + 4, label, 14, fill)
                continue
            for x in (last, first - width):
                inside = self.left <= x and x + width <= self.right
                if inside and not any(x + 0.5 < end and x + width - 0.5 > start for start, end in taken):
                    self._text(x + 6, self.y + 4, label, 14, INK)
                    taken.append((x, x + width))
                    break
        self._name(name, self.y + 4)
        self.y += height + 8

    def _predicted(self, spans: np.ndarray, scores: np.ndarray | None) -> None:
        for rank, span in enumerate(spans[:MAX_PREDICTED]):
            score = "" if scores is None else f"  ({scores[rank]:.2f})"
            name = ("predicted", "2nd", "3rd")[rank]
            self._lane(name, [(span, WEAKER if rank else PREDICTED, _seconds(span) + score)])
        if not len(spans):
            self._lane("predicted", [])
            self._text(self.left + 8, self.y - 30, "no span", 14, FAINT)
        elif len(spans) > MAX_PREDICTED:
            self._text(self.left, self.y, f"and {len(spans) - MAX_PREDICTED} weaker", 14, FAINT)
            self.y += 26

    def _axis(self) -> None:
        """Seconds below everything; a tick every 1, 2 or 5 x 10^n seconds."""
        self._line(self.left, self.y, self.right, self.y, INK)
        step = _tick(self.duration_s, 12)
        digits = max(0, -math.floor(math.log10(step)))
        for i in range(int(self.duration_s / step + 1e-6) + 1):
            x = self._x(i * step)
            self._line(x, self.y, x, self.y + 6, INK)
            label = f"{i * step:.{digits}f}" + (" s" if not i else "")
            self._text(x, self.y + 9, label, 14, FAINT, anchor="ma")
        self.y += 42

    def _name(self, name: str, y: float) -> None:
        self._text(self.left - 12, y, name, 14, INK, anchor="ra")

    # -- the pen -------------------------------------------------------------------------------------------------------

    def _x(self, time_s: float) -> float:
        share = min(max(float(time_s) / self.duration_s, 0), 1)
        return self.left + share * (self.right - self.left)

    def _box(self, left: float, top: float, right: float, bottom: float, fill: str) -> None:
        corners = [round(v * _SCALE) for v in (left, top, right, bottom)]
        radius = min(4 * _SCALE, (corners[2] - corners[0]) // 2)
        self.pen.rounded_rectangle(corners, radius=radius, fill=fill)

    def _line(self, x1: float, y1: float, x2: float, y2: float, fill: str) -> None:
        self.pen.line([round(v * _SCALE) for v in (x1, y1, x2, y2)], fill=fill, width=_SCALE)

    def _text(self, x: float, y: float, text: str, size: int, fill: str = INK, anchor: str = "la") -> None:
        self.pen.text((x * _SCALE, y * _SCALE), text, fill=fill, font=self._font(size), anchor=anchor)

    @staticmethod
    def _font(size: int) -> Any:
        return ImageFont.load_default(size * _SCALE)


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=float)


def _seconds(span: np.ndarray) -> str:
    return f"{span[0]:.1f} to {span[1]:.1f} s"


def _tick(duration_s: float, most: int) -> float:
    """The least of 1, 2, 5 x 10^n seconds that gives at most so many ticks."""
    power = 10.0 ** math.floor(math.log10(duration_s / most))
    return next(unit * power for unit in (1, 2, 5, 10) if duration_s / (unit * power) <= most)


def _shortened(text: str, font: Any, width: float) -> str:
    while text and font.getlength(text) / _SCALE > width:
        text = text[:-2].rstrip() + "…"
    return text
