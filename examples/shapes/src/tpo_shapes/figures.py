"""An answer of a demo as a figure of its report: a picture, or a clip that plays, with what is true and was found."""

from __future__ import annotations

import base64
import html
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tpo_shapes.evaluate import VIDEO, Answer, Question, correct, overlap, span_overlap
from tpo_shapes.outlines import draw_track, film_track, score_masks
from tpo_shapes.questions import MASK, PLACEHOLDER
from tpo_shapes.world import CLIP_SECONDS, CLIP_TIMES

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 240
COLOURS = {"true": "#1e90ff", "found": "#ff8c00", "text": "#b050ff"}


def box_figure(question: Question, found: Answer, text: Answer) -> str:
    """A question about a box, and one of conversation, with the boxes of both models."""
    marked = [("true", box) for box in [*question.given, question.box] if box is not None]
    marked += [
        (kind, a.boxes[0]) for kind, a in (("text", text), ("found", found)) if a.boxes and question.box is not None
    ]
    if question.wanted == "box":
        reached = f"Overlap with the true box (IoU): {overlap(question, found):.2f}"
        verdict = f"{reached if found.boxes else 'The answer has no box'}; as words {overlap(question, text):.2f}."
    else:
        verdict = "Right." if correct(question, found) else f"Wrong; expected: {question.answer}."
    shown = _film(question, marked) if question.clip and marked else _img(draw(question, marked))
    return _figure(shown, question.text.replace(PLACEHOLDER, "[this box]"), found.text, verdict)


def moment_figure(question: Question, found: Answer, mlp: Answer) -> str:
    """A question about a moment: the clip, and below it its frames, the saliency, the true and the found moments."""
    reached = f"Overlap with the true moment (IoU): {span_overlap(question, found):.2f}"
    reached = reached if found.spans_s else "The answer has no moment"
    verdict = f"{reached}; by an MLP {span_overlap(question, mlp):.2f}."
    shown = f"<div class=beside>{_film(question, [])}{_img(timeline(question, found))}</div>"
    return _figure(shown, question.text, found.text, verdict, kind="wide")


def mask_figure(question: Question, answer: Answer, name: str) -> str:
    """A question about masks; `name` is who answered."""
    score = score_masks([question], {name: [answer]})[name][question.kind]["J&F"]
    verdict = f"Overlap with the true mask (J&F): {score:.2f}." if answer.track else "The answer has no mask."
    if question.clip:
        shown = _video(lambda path: film_track(question, answer.track, path, SIDE))
    else:
        shown = _img(draw_track(question, answer.track))
    return _figure(shown, question.text.replace(MASK, "[this box]"), answer.text, verdict)


def draw(question: Question, boxes: list[tuple[str, list[float]]]) -> Image:
    """The picture, or the frame that the question names, enlarged, with boxes ("true", "found" or "text") on it."""
    from tpo_plugin.data import read_frame, read_image

    if question.clip:
        return _marked(read_frame(question.media, 0.0 if question.time is None else question.time), boxes)
    return _marked(read_image(question.media), boxes)


def timeline(question: Question, found: Answer) -> Image:
    """The clip's frames, the saliency where there is one, the true moments, and those found, the surest first."""
    from tpo_head_temporal.timeline import render_timeline

    from tpo_plugin.data import VideoOptions, read_video

    curve = {"saliency": found.saliency, "times_s": CLIP_TIMES} if found.saliency else {}
    video = read_video(question.media, VideoOptions(**VIDEO))
    return render_timeline(
        video, {"spans_s": found.spans_s, **curve}, {"spans_s": question.spans_s}, title=question.text
    )


def _marked(picture: Image, boxes: list[tuple[str, list[float]]]) -> Image:
    from PIL import ImageDraw

    picture = picture.resize((SIDE, SIDE))
    pen = ImageDraw.Draw(picture)
    for kind, box_xyxy in boxes:
        corners = [round(min(max(value, 0.0), 1.0) * (SIDE - 1)) for value in box_xyxy]
        x1, y1, x2, y2 = corners[0], corners[1], max(corners[0], corners[2]), max(corners[1], corners[3])
        pen.rectangle((x1, y1, x2, y2), outline="black", width=4)  # a dark rim: legible on any background
        pen.rectangle((x1 + 1, y1 + 1, max(x1, x2 - 2) + 1, max(y1, y2 - 2) + 1), outline=COLOURS[kind], width=2)
    return picture


def _film(question: Question, boxes: list[tuple[str, list[float]]]) -> str:
    """The clip, which stands at the frame that the question names; that one has the boxes."""
    from PIL import Image

    from tpo_plugin.data import stream_video, write_video

    named = 0.0 if question.time is None else question.time
    frames = [
        (second, np.asarray(_marked(Image.fromarray(frame), boxes if abs(second - named) < 1e-3 else [])))
        for second, frame in stream_video(question.media)
    ]
    return _video(lambda path: write_video(path, frames, CLIP_SECONDS), named)


def _video(write: Callable[[Path], Path], time_s: float = 0.0) -> str:
    with tempfile.TemporaryDirectory() as folder:
        data = base64.b64encode(write(Path(folder) / "clip.mp4").read_bytes()).decode()
    return f'<video controls muted playsinline src="data:video/mp4;base64,{data}#t={time_s + 0.01:.2f}"></video>'


def _img(picture: Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _figure(shown: str, asked: str, said: str, verdict: str, kind: str = "small") -> str:
    caption = f"<b>{html.escape(asked)}</b><br>{html.escape(said)}<br><i>{html.escape(verdict)}</i>"
    return f"<figure class={kind}>{shown}<figcaption>{caption}</figcaption></figure>"
