"""What the heads' scores of the demo's answers are worth: average precision, calibration, and how reliable they are."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import torch
from tpo_head_mask import rle
from tpo_head_mask.jf import frame_scores

from tpo_plugin.scores import overlap_metrics, reliability
from tpo_shapes.evaluate import Answer, Question, overlap, span_overlap

KINDS = ("pictures: boxes", "clips: boxes", "clips: moments", "pictures: masks", "clips: masks")
_COLOURS = dict(zip(KINDS, ("#ff8c00", "#b05a00", "#1e90ff", "#2e8b57", "#b050ff"), strict=True))
SCORES = ("ap@0.5", "ap", "calibration_error")
CONFIDENCE_NOTE = (
    "AP: average precision by the head's own score, of the questions that want it; at an overlap of 0.5, and the mean "
    "over 0.5 to 0.95. Calibration error: how far the score is from the overlap that is reached, on average over the "
    "answers with a score (expected calibration error, ten bins). The overlap of a moment is that with the true one "
    "that fits it best; of a mask that in the first frame, which its score is about."
)


def score_confidence(questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """For each of `KINDS` "num" (questions), "scored" (answers with a score), `SCORES` (None without any), and
    "reliability": (mean score, mean overlap, number) of each bin."""
    found: dict[str, list[tuple[float | None, float]]] = {kind: [] for kind in KINDS}
    for question, answer in zip(questions, answers, strict=True):
        if question.wanted is not None:
            media = "clips" if question.clip else "pictures"
            wanted = {"box": "boxes", "moment": "moments", "mask": "masks"}[question.wanted]
            score = answer.scores.get(question.wanted)
            found[f"{media}: {wanted}"].append((score, 0.0 if score is None else _reached(question, answer)))
    return {kind: _worth(pairs) for kind, pairs in found.items()}


def _reached(question: Question, answer: Answer) -> float:
    if question.wanted == "box":
        return overlap(question, answer)
    if question.wanted == "moment":
        return span_overlap(question, answer)
    assert answer.track is not None
    guess, true = answer.track["masks"][0], question.masks[0]
    assert true is not None, "a question about masks is of an object that its first frame shows"
    return 0.0 if guess is None else frame_scores(rle.decode(guess), rle.decode(true))[0]


def _worth(pairs: list[tuple[float | None, float]]) -> dict[str, Any]:
    scored = [(score, reached) for score, reached in pairs if score is not None]
    counts: dict[str, Any] = {"num": len(pairs), "scored": len(scored)}
    if not scored:
        return counts | dict.fromkeys(SCORES) | {"reliability": []}
    scores, reached = torch.tensor(scored).unbind(-1)
    return counts | overlap_metrics(scores, reached, len(pairs)) | {"reliability": reliability(scores, reached)}


def confidence_rows(results: dict[str, Any]) -> list[list[str]]:
    """The table as text: a kind of answer, then `SCORES` in percent."""
    return [
        [kind, *("-" if found[key] is None else f"{100 * found[key]:.1f}" for key in SCORES)]
        for kind, found in results["confidence"].items()
    ]


def reliability_plot(results: dict[str, Any]) -> str:
    """An inline SVG: the overlap that was reached over the score, a dot for each bin, as large as it has answers."""
    side, left, top = 320, 44, 8

    def at(score: float, reached: float) -> tuple[float, float]:
        return left + score * side, top + (1 - reached) * side

    def line(*points: tuple[float, float], colour: str) -> str:
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        return f'<polyline points="{places}" stroke="{colour}" fill="none"/>'

    marks = line(at(0, 0), at(1, 1), colour="#bbb") + line(at(0, 1), at(0, 0), at(1, 0), colour="#ddd")
    for value in (0.0, 0.5, 1.0):
        (x, below), (before, y) = at(value, 0), at(0, value)
        marks += f'<text x="{x}" y="{below + 16}" text-anchor="middle">{value:g}</text>'
        marks += f'<text x="{before - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>'
    for number, (kind, found) in enumerate(results["confidence"].items()):
        places = [at(score, reached) for score, reached, _ in found["reliability"]]
        marks += line(*places, colour=_COLOURS[kind])
        for (x, y), (*_, size) in zip(places, found["reliability"], strict=True):
            radius = 2 + 6 * (size / found["scored"]) ** 0.5
            marks += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{_COLOURS[kind]}" fill-opacity=".7"/>'
        legend = f'<text x="{left + side + 20}" y="{30 + 18 * number}" style="fill: {_COLOURS[kind]}">'
        marks += f"{legend}{html.escape(kind)}</text>"
    return f'<svg viewBox="0 0 520 {side + 30}" width="520">{marks}</svg>'
