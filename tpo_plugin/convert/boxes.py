"""Boxes of a source, in the one convention that its format declares, which is verified over the whole source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from tpo_plugin.checks import is_list, is_number
from tpo_plugin.convert.pictures import Picture
from tpo_plugin.convert.report import Place, Report

Order = Literal["xyxy", "xywh", "yxyx", "xxyy", "cxcywh"]

_WORDS = {
    "xyxy": "[x1, y1, x2, y2]",
    "xywh": "[x, y, width, height]",
    "yxyx": "[y1, x1, y2, x2]",
    "xxyy": "[x1, x2, y1, y2]",
    "cxcywh": "[centre x, centre y, width, height]",
}

_SLACK_PX, _SLACK = 1.0, 0.005
"""By how much a box may stick out, and is clipped then: in pixels, or of shares. A grid, 0 to 1000, has no slack."""
_SLACK_SQUARE = 0.01
"""The same of a padded square, whose boxes are written with two or three digits."""

_DOUBT_COUNT, _DOUBT_SHARE = 3, 0.02
"""From how many boxes that speak against its convention, and above which share of all, a source contradicts it."""

_TELLING = 20
"""Boxes of which at least one should reach where only the declared unit reaches, in pictures in which that shows."""

_ROUNDING = 1e-6
"""Of the picture: what sticks out by less is no news."""


@dataclass
class Boxes:
    """Reads the boxes of one conversion."""

    report: Report
    order: Order
    full: float | None
    """What stands for the whole width or height: 1, 1000; None where boxes are in pixels."""
    one_based: bool = False
    """Whether pixels count from 1 and the second corner is the last pixel inside (Pascal VOC): first corner - 1."""
    square: bool = False
    """Whether they are of the picture padded to a square, with the picture in its middle, instead of the picture."""

    num: int = field(default=0, init=False)
    """Boxes that were seen."""
    largest: float = field(default=0.0, init=False)
    against: Counter[str] = field(default_factory=Counter, init=False)
    """How many boxes speak against the convention, by what they say."""
    telling: int = field(default=0, init=False)
    """Boxes in pictures so small or large that pixels, and 0 to 1000, reach into different parts of them."""
    told: int = field(default=0, init=False)
    """Those that reach where only the declared unit reaches."""

    def __post_init__(self) -> None:
        self.report.checks.append(self._doubts)

    def read(self, values: Any, picture: Picture | tuple[float, float] | None, place: Place) -> list[float]:
        """[x1, y1, x2, y2] in 0 to 1 of the picture, as it is shown. Its size alone will do, or None if not in pixels.

        Sticking out by at most 1 pixel (or 0.5 percent) it is clipped, and that is counted. Raises `Fault`.
        """
        if not is_list(values) or len(values) != 4 or not all(map(is_number, values)):
            raise place.fault(values, f"four finite numbers {_WORDS[self.order]}")
        self.num += 1
        self.largest = max(self.largest, *values)
        size = (picture.width, picture.height) if isinstance(picture, Picture) else picture
        whole: tuple[float, float] | None = size if self.full is None else (self.full, self.full)
        if whole is None or (self.square and size is None):
            raise place.fault(values, "a picture of known size, which these boxes count in")
        corners = self._corners(values)
        self._look_at_unit(corners, size)
        if self.one_based and min(corners[:2]) < 0:
            self.against["count from 0"] += 1
        self._check_order(values, corners, whole, place)
        box = [value / whole[axis % 2] for axis, value in enumerate(corners)]
        slack = [_SLACK_PX / side if self.full is None else _SLACK if self.full == 1 else _ROUNDING for side in whole]
        if self.square and size is not None:
            side = max(size)
            box = [(value * side - (side - size[axis % 2]) // 2) / size[axis % 2] for axis, value in enumerate(box)]
            slack = [_SLACK_SQUARE * side / edge for edge in size]
        clipped = [min(1.0, max(0.0, value)) for value in box]
        out = max(abs(a - b) / slack[axis % 2] for axis, (a, b) in enumerate(zip(box, clipped, strict=True)))
        if out > 1 or clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            self._refuse_outside(values, whole, place)
        if max(abs(a - b) for a, b in zip(box, clipped, strict=True)) > _ROUNDING:
            self.report.change(
                f"boxes that stuck out by at most {'1 pixel' if self.full is None else '0.5 percent'} were clipped",
                f"{place}: {values!r}",
            )
        return picture.turned(clipped) if isinstance(picture, Picture) else clipped

    def _corners(self, values: list[float]) -> list[float]:
        a, b, c, d = map(float, values)
        if self.order == "xywh":
            a, b, c, d = a, b, a + c, b + d
        elif self.order == "yxyx":
            a, b, c, d = b, a, d, c
        elif self.order == "xxyy":
            a, b, c, d = a, c, b, d
        elif self.order == "cxcywh":
            a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
        return [a - 1, b - 1, c, d] if self.one_based else [a, b, c, d]

    def _look_at_unit(self, corners: list[float], size: tuple[float, float] | None) -> None:
        """Numbers that are pixels fit a grid of 0 to 1000 where pictures are smaller, and the other way round."""
        if size is None or self.full == 1:
            return
        if self.full is None and min(size) > 1250:
            self.telling += 1
            self.told += max(corners) > 1000
        if self.full is not None and max(size) < 0.9 * self.full:
            self.telling += 1
            self.told += corners[2] > size[0] or corners[3] > size[1]

    def _check_order(self, values: list[float], corners: list[float], whole: tuple[float, float], place: Place) -> None:
        if corners[0] < corners[2] and corners[1] < corners[3]:
            return
        if "w" in self.order:
            raise place.fault(values, f"{_WORDS[self.order]} with a width and height above 0")
        first, second = values[:2] if self.order != "xxyy" else values[::2]
        hint = ""
        if self.order != "xxyy" and values[2] > 0 < values[3]:
            fits = first + values[2] <= whole[0] and second + values[3] <= whole[1]
            hint = "; as [x, y, width, height] it would fit" if fits else ""
            self.against["look like [x, y, width, height]" if fits else "are inverted"] += 1
        raise place.fault(values, f"{_WORDS[self.order]} with x1 < x2 and y1 < y2{hint}")

    def _refuse_outside(self, values: list[float], whole: tuple[float, float], place: Place) -> None:
        largest = max(values)
        if self.square and largest <= (self.full or largest):
            self.against["look like boxes of the picture itself"] += 1
            raise place.fault(values, f"a box inside the picture, in {self._unit}")
        if self.full is None:
            hint = ""
            if self.order == "xywh" and values[0] < values[2] <= whole[0] and values[1] < values[3] <= whole[1]:
                hint = "; as [x1, y1, x2, y2] it would fit"
                self.against["look like [x1, y1, x2, y2]"] += 1
            else:
                grid = ", or 0 to 1000" if largest <= 1000 else ""
                self.against[f"may be of resized pictures{grid}"] += 1
            raise place.fault(values, f"a box inside its picture of {whole[0]:g} x {whole[1]:g} pixels{hint}")
        if largest > self.full:
            unit = "0 to 1000, or pixels" if self.full <= 1 and largest <= 1000 else "pixels"
            self.against[f"look like {unit}"] += 1
        raise place.fault(values, f"{_WORDS[self.order]} in 0 to {self.full:g} of the picture")

    @property
    def _unit(self) -> str:
        unit = "pixels" if self.full is None else f"0 to {self.full:g}"
        return f"{unit} of the picture padded to a square" if self.square else unit

    def _doubts(self) -> Iterable[str]:
        declared = f"{_WORDS[self.order]} in {self._unit}"
        wrong = self.against.total()
        if wrong >= _DOUBT_COUNT and wrong > _DOUBT_SHARE * self.num:
            said = ", ".join(f"{count} {what}" for what, count in self.against.most_common())
            yield f"{wrong} of {self.num} boxes are not {declared}, as was declared: {said}"
        if self.telling >= _TELLING and not self.told:
            other, reason = ("0 to 1000", "1000") if self.full is None else ("pixels", "the pixels of its picture")
            yield f"{self.telling} boxes look like {other}, since none goes beyond {reason}; {declared} was declared"
        if self.num and self.full != 1 and self.largest < 1.001:
            yield (
                f"the largest number of all {self.num} boxes is {self.largest:g}: they look like shares of the "
                f"picture, not {declared}, as was declared"
            )
