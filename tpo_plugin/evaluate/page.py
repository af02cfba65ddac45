"""`report.html` of an evaluation: for each head the best and the worst answers, drawn, then the scores."""

from __future__ import annotations

import base64
import html
import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from tpo_plugin.atomic import replace_file
from tpo_plugin.data import read_sample
from tpo_plugin.data.dataset import Sample
from tpo_plugin.data.records import Records
from tpo_plugin.drawing import Found, draw
from tpo_plugin.errors import TPOError
from tpo_plugin.evaluate.answering import Asked
from tpo_plugin.evaluate.questions import Question, question_of
from tpo_plugin.evaluate.table import QUESTIONS, notes, num_questions, rows, said
from tpo_plugin.training.config import DataConfig

NUM_SHOWN = 6
"""Best and worst answers of each head."""
_SIDE = 320
"""Pixels of a picture's longer side."""

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1f24; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; } th, td { padding: .3em .6em; border-bottom: 1px solid #ddd; }
th { text-align: left; font-weight: 600; vertical-align: bottom; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; }
.card { background: #f4f5f7; padding: .8rem; width: 330px; overflow-wrap: anywhere; }
.card img, .card video { max-width: 100%; display: block; margin: .4rem 0; }
.faint { color: #6b7280; font-size: 13px; }
.alarm { color: #b42318; }
"""


@dataclass
class Shown:
    """By head the best and the worst answers so far."""

    best: dict[str, list[tuple[Question, Asked]]] = field(default_factory=dict)
    worst: dict[str, list[tuple[Question, Asked]]] = field(default_factory=dict)

    def add(self, question: Question, asked: Asked) -> None:
        """Looks at an answer whose quality is known; of equals the first of the data stays."""
        for head in asked.line.quality:
            for kept, sign in ((self.best, -1), (self.worst, 1)):
                found = [*kept.get(head, ()), (question, asked)]
                found.sort(key=lambda pair, h=head, s=sign: (s * pair[1].line.quality[h], pair[0].number))  # type: ignore[misc]
                kept[head] = found[:NUM_SHOWN]


def write_page(
    path: Path,
    results: dict[str, Any],
    shown: Shown,
    model: Any,
    sources: Sequence[Records],
    reading: DataConfig,
    *,
    alone: bool,
) -> None:
    """One file with everything in it."""
    body = [f"<h1>{html.escape(results['run'])}</h1><p>{num_questions(results)}.</p>"]
    cards = _Cards(model, sources, reading, alone)
    for head in shown.best:
        for title, kept in (("best", shown.best), ("worst", shown.worst)):
            body.append(f'<h2>{html.escape(head)}: the {title} answers</h2><div class="cards">')
            body += [cards.card(head, question, asked) for question, asked in kept[head]]
            body.append("</div>")
    body.append("<h2>How good are the answers?</h2>" + _table(results))
    body += [f"<p>{html.escape(note)}</p>" for note in notes(results)]
    failures = results["failures"]
    if failures:
        body.append(f"<h2>{len(failures)} failures</h2><ul>")
        body += [f"<li>{html.escape(said(failure))}</li>" for failure in failures[:100]]
        body.append(f"</ul>{f'<p>and {len(failures) - 100} more</p>' if len(failures) > 100 else ''}")
    text = f'<!doctype html><meta charset="utf-8"><title>tpo eval</title><style>{_STYLE}</style>' + "\n".join(body)
    replace_file(path, lambda name: Path(name).write_text(text + "\n", encoding="utf-8"))


def _table(results: dict[str, Any]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(QUESTIONS, 'th')}{''.join(line(row, 'td') for row in rows(results))}</table>"


class _Cards:
    def __init__(self, model: Any, sources: Sequence[Records], reading: DataConfig, alone: bool) -> None:
        self.tpo, self.sources, self.reading, self.alone = model.tpo, sources, reading, alone

    def card(self, head: str, question: Question, asked: Asked) -> str:
        """A question with the pictures of what was wanted and of what was found."""
        line = asked.line
        parts = [
            f'<div class="card"><b>{html.escape(line.question)}</b><br>{html.escape(line.text)}',
            f'<div class="faint">wanted: {html.escape(line.reference)}; quality {line.quality[head]:.3f}; '
            f"{html.escape(line.record)}, turn {line.turn}</div>",
        ]
        if line.failure:
            parts.append(f'<div class="alarm">{html.escape(line.failure)}</div>')
        try:
            parts += self._pictures(head, question, asked)
        except Exception as error:  # of media, of heads' drawing: the scores stand without it
            parts.append(f'<div class="alarm">cannot be drawn: {html.escape(str(error))}</div>')
        return "".join(parts) + "</div>"

    def _pictures(self, head: str, question: Question, asked: Asked) -> Iterator[str]:
        record = question_of(self.sources[question.source][question.index], question.turn, alone=self.alone)
        sample = read_sample(record, self.reading.video, self.reading.image)
        tasks = [task for task in record.turns[-1].tasks if task["head"] == head]
        given = [task for task in record.turns[-2].tasks if task["head"] == head] if len(record.turns) > 1 else []
        for picture in self.tpo.codecs[head].draw_tasks(tasks, given, sample):
            yield _image(picture, "wanted")
        values = self._values(head, asked)
        if not values:
            yield f'<div class="alarm">The model did not call the head {html.escape(head)}: it found nothing.</div>'
            return
        with tempfile.TemporaryDirectory() as folder:
            picture = self._picture(sample, tasks)
            clip = sample.videos[0] if sample.videos else None
            found = [Found(head, v, f"{n} {head}" if len(values) > 1 else head) for n, v in enumerate(values, 1)]
            drawing = draw(self.tpo.heads, found, picture, clip, Path(folder) / "found.png")
            for file in drawing.files:
                yield _file(file)
            for why in drawing.undrawn:
                yield f'<div class="faint">{html.escape(why)}</div>'

    def _picture(self, sample: Sample, tasks: Sequence[dict[str, Any]]) -> Image.Image:
        if not sample.images and not sample.videos:
            raise TPOError("the question is about text alone")
        return sample.picture(next((task["time"] for task in tasks if "time" in task), None))

    def _values(self, head: str, asked: Asked) -> list[Any]:
        outputs, number = asked.outputs.get(head, ({}, 0))
        return list(self.tpo.heads[head].postprocess(outputs)) if number else []


def _file(path: Path) -> str:
    if path.suffix == ".mp4":
        data = base64.b64encode(path.read_bytes()).decode()
        return f'<video controls muted src="data:video/mp4;base64,{data}" title="found"></video>'
    with Image.open(path) as picture:
        return _image(picture, "found")


def _image(picture: Image.Image, title: str) -> str:
    small = picture.convert("RGB")
    factor = _SIDE / max(small.size)
    small = small.resize((max(1, round(small.width * factor)), max(1, round(small.height * factor))))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<div class="faint">{title}</div><img src="data:image/jpeg;base64,{data}" alt="{title}">'
