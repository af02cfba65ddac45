"""Spans and a saliency curve over an axis of seconds, as SVG, which the page's script plays from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

WIDTH, LEFT, RIGHT = 560, 18, 18
MAX_SPANS = 5
"""Spans that get a lane each, the best first; of the rest the number is said."""
_CURVE, _LANE = 64, 28


def has_spans(value: Any) -> bool:
    """Whether a head's value, as JSON, has spans in seconds: by the name of their format, whatever the head."""
    return isinstance(value, Mapping) and "spans_s" in value


def axis(value: Mapping[str, Any], duration_s: float, title: str) -> str:
    """The axis of a value with `spans_s` [K, 2], and maybe their `scores` [K], and `saliency` [F] at `times_s` [F]."""
    spans, scores = value["spans_s"], value.get("scores")
    rows, y = [], 8.0
    if value.get("saliency"):
        rows.append(_curve(value["times_s"], value["saliency"], duration_s, y))
        y += _CURVE + 8
    for rank, (start, end) in enumerate(spans[:MAX_SPANS]):
        label = f"{start:.1f} to {end:.1f} s" + ("" if scores is None else f", {scores[rank]:.2f}")
        rows.append(_span(start, end, label, duration_s, y, best=rank == 0))
        y += _LANE
    rows.append(_ticks(duration_s, y))
    rows.append(f'<line class="tpo-now" x1="{LEFT}" x2="{LEFT}" y1="0" y2="{y}"/>')
    more = f"<p>and {len(spans) - MAX_SPANS} weaker</p>" if len(spans) > MAX_SPANS else ""
    none = "" if spans else "<p>No span was found.</p>"
    return (
        f'<svg class="tpo-axis" viewBox="0 0 {WIDTH} {y + 26:.0f}" data-duration="{duration_s}" data-left="{LEFT}" '
        f'data-room="{WIDTH - LEFT - RIGHT}" role="img" aria-label="{escape(title)}">{"".join(rows)}</svg>{none}{more}'
    )


def _x(time_s: float, duration_s: float) -> float:
    return LEFT + min(max(time_s / max(duration_s, 1e-3), 0.0), 1.0) * (WIDTH - LEFT - RIGHT)


def _curve(times_s: Sequence[float], saliency: Sequence[float], duration_s: float, y: float) -> str:
    """A line from the least to the greatest value, over the whole axis."""
    values = np.asarray(saliency, dtype=float)
    low, high = float(values.min()), float(values.max())
    shares = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    places = [(_x(t, duration_s), y + 4 + (1 - share) * (_CURVE - 8)) for t, share in zip(times_s, shares, strict=True)]
    places = [(LEFT, places[0][1]), *places, (WIDTH - RIGHT, places[-1][1])]
    line = " ".join(f"{x:.1f},{height:.1f}" for x, height in places)
    floor = y + _CURVE
    return (
        f'<polygon class="tpo-below" points="{line} {WIDTH - RIGHT},{floor} {LEFT},{floor}"/>'
        f'<polyline class="tpo-curve" points="{line}"><title>saliency, {low:.2f} to {high:.2f}</title></polyline>'
    )


def _span(start: float, end: float, label: str, duration_s: float, y: float, *, best: bool) -> str:
    x, width = _x(start, duration_s), max(4.0, _x(end, duration_s) - _x(start, duration_s))
    room = 7.2 * len(label) + 12
    if room <= width:
        text_x, anchor, kind = x + 8, "start", "tpo-inside"
    elif x + width + room <= WIDTH:
        text_x, anchor, kind = x + width + 6, "start", "tpo-beside"
    else:
        text_x, anchor, kind = x - 6, "end", "tpo-beside"
    return (
        f'<g class="tpo-span{" tpo-best" if best else ""}" data-seek="{start}" role="button" tabindex="0" '
        f'aria-label="play from {start:.1f} s">'
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_LANE - 8}" rx="4"/>'
        f'<text class="{kind}" x="{text_x:.1f}" y="{y + 15}" text-anchor="{anchor}">{escape(label)}</text></g>'
    )


def _ticks(duration_s: float, y: float) -> str:
    """Seconds below everything; a tick every 1, 2 or 5 x 10^n seconds, at most ten or so."""
    power = 10.0 ** math.floor(math.log10(max(duration_s, 1e-3) / 10))
    step = next(unit * power for unit in (1, 2, 5, 10) if duration_s / (unit * power) <= 10)
    digits = max(0, -math.floor(math.log10(step)))
    marks = f'<line class="tpo-base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
    for number in range(int(duration_s / step + 1e-6) + 1):
        x = _x(number * step, duration_s)
        label = f"{number * step:.{digits}f}" + ("" if number else " s")
        marks += f'<line class="tpo-base" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 6}"/>'
        marks += f'<text class="tpo-tick" x="{x:.1f}" y="{y + 20}" text-anchor="middle">{label}</text>'
    return marks
