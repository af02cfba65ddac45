"""What an answer found, as HTML: pictures with the values drawn on, clips that play, and axes of seconds below them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tpo_plugin.app.axis import axis, has_spans
from tpo_plugin.asking import Answer, text_places
from tpo_plugin.data import Sample
from tpo_plugin.drawing import Found, draw, found_in


def figures(
    heads: Mapping[str, Any], sample: Sample, answer: Answer, time_s: float | None, shown: Path | None, folder: Path
) -> list[str]:
    """What was found, in files in `folder`, and a sentence for what cannot be drawn, or was cut off.

    `time_s` is the second of a video whose frame boxes belong to, `shown` the video as a browser plays it.
    """
    clip = sample.videos[0] if sample.videos else None
    parts: list[str] = []
    spans: list[tuple[Found, Any]] = []
    others: list[Found] = []
    for found in found_in(answer.predictions):
        plain = heads[found.head].to_json(found.value) if clip is not None else None
        if has_spans(plain):
            spans.append((found, plain))
        else:
            others.append(found)
    axes = [axis(value, clip.duration_s, found.label) for found, value in spans] if clip is not None else []
    names = [escape(found.label) for found, _ in spans]
    if others and clip is None and not sample.images:
        parts += [f"<p>{escape(found.label)}: there is no picture to draw on</p>" for found in others]
    elif others:
        drawing = draw(heads, others, sample.picture(time_s), clip, folder / "found.png")
        for file, on_it in drawing.files.items():
            labels = [escape(found.label) for found in on_it]
            if file.suffix == ".mp4":
                parts.append(_figure(_video(file), axes, labels + names))
                axes, names = [], []
            else:
                parts.append(_figure(_picture(file), [], labels + ([] if time_s is None else [f"at {time_s:.1f} s"])))
        parts += [f"<p>{escape(why)}</p>" for why in drawing.undrawn]
    if axes and shown is not None:
        parts.insert(0, _figure(_video(shown), axes, names))
    cut = [found.head for found in answer.predictions if found.cut_off]
    parts += [f"<p>{escape(head)}: cut off by the longest answer; see --max-new-tokens</p>" for head in cut]
    return parts


def marked(tokenizer: Any, answer: Answer) -> str:
    """The answer's text with the numbers of its predictions where they stand, where there are several."""
    told = [n for n, found in enumerate(answer.predictions) if found.value is not None]
    if len(told) < 2:
        return answer.text
    text, ends = answer.text, [end for _, end in text_places(tokenizer, answer)]
    for number, index in reversed(list(enumerate(told, 1))):
        text = f"{text[: ends[index]].rstrip()} [{number}]{text[ends[index] :]}"
    return text


def address(file: Path) -> str:
    """Where the page finds a file."""
    return f"/gradio_api/file={quote(str(file))}"


def _figure(inside: str, axes: Sequence[str], names: Sequence[str]) -> str:
    caption = f"<figcaption>{' · '.join(names)}</figcaption>" if names else ""
    return f'<figure class="tpo-figure">{inside}{"".join(axes)}{caption}</figure>'


def _video(file: Path) -> str:
    return f'<video src="{address(file)}" controls muted playsinline preload="auto"></video>'


def _picture(file: Path) -> str:
    return f'<img src="{address(file)}" alt="what was found">'
