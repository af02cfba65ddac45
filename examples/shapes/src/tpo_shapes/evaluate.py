"""Real answers to held-out questions, and what they are worth.

An answer is generated, one question a prompt; nothing of the wanted answer is shown to the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tpo_shapes.baselines import box_as_text, iou, span_iou, text_as_box, text_as_moments
from tpo_shapes.questions import CHAT, CLIP_CHAT, MASK, MOMENTS, PLACEHOLDER, Box, Mask, Span
from tpo_shapes.world import CLIP_FRAMES

GIVEN = ("given", "given_colour", "given_shape")
CALLS = {"region": "box", "mask": "mask"}
"""What a head's trigger calls for; that of any other for a moment."""
VIDEO: dict[str, Any] = {"num_frames": CLIP_FRAMES, "sampling": "middle"}
"""How clips are read, in training and in evaluation: the frames at `CLIP_TIMES`."""


@dataclass
class Question:
    """One question about one picture or clip, with what is wanted."""

    media: str
    """Path of the file."""
    kind: str
    text: str
    """With a placeholder for each box that the user gives."""
    answer: str
    """The wanted words; with a placeholder where a box is wanted, or moments."""
    given: list[Box] = field(default_factory=list)
    box: Box | None = None
    """The wanted box."""
    time: float | None = None
    """Seconds, for a box of a clip."""
    spans_s: list[Span] = field(default_factory=list)
    """The wanted moments."""
    masks: list[Mask | None] = field(default_factory=list)
    """The wanted masks, one for each frame, None for a frame without the object."""
    first_box: Box | None = None
    """The box in a clip's first frame of what is to be followed, where the user gives it."""

    @property
    def wanted(self) -> str | None:
        """What the answer shall call for: "box", "moment", "mask", or none of them."""
        return "box" if self.box is not None else "moment" if self.spans_s else "mask" if self.masks else None

    @property
    def clip(self) -> bool:
        """Whether it is about a clip."""
        return self.media.endswith(".mp4")


@dataclass
class Answer:
    """What a model said."""

    text: str
    boxes: list[Box] = field(default_factory=list)
    """In the order of the answer."""
    spans_s: list[Span] = field(default_factory=list)
    """The moments of one answer, the one that it is surest of first."""
    saliency: list[float] = field(default_factory=list)
    """Of each frame of a clip, where moments were asked and a head said it."""
    called: list[str] = field(default_factory=list)
    """What was called for, "box", "moment" or "mask": the trigger was emitted, or the numbers were said."""
    scores: dict[str, float] = field(default_factory=dict)
    """The head's own confidence in the first "box", "moment" or "mask", 0 to 1."""
    track: dict[str, Any] | None = None
    """The first object's "masks" (RLE) at "times" (seconds), where masks were called for."""


def read_questions(files: Iterable[Path]) -> list[Question]:
    """Every turn of every record as a question of its own; those about clips, and of one length, side by side."""
    questions: list[Question] = []
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            questions += _turns(json.loads(line), file.parent)
    return sorted(questions, key=lambda q: (q.clip, len(q.text.split())))


def _turns(record: dict[str, Any], root: Path) -> list[Question]:
    media = str(root / record.get("image", record.get("video", "")))
    tasks = iter(record.get("tasks", []))
    values = [line["value"].removeprefix("<image>\n") for line in record["conversations"]]
    questions = []
    for kind, text, answer in zip(record["kinds"], values[::2], values[1::2], strict=True):
        question = Question(media, kind, text, answer)
        for _ in range(text.count(PLACEHOLDER)):
            task = next(tasks)
            question.given.append(task["boxes"][0])
            question.time = task.get("time")
        if PLACEHOLDER in answer:
            task = next(tasks)
            question.box, question.time = task["boxes"][0], task.get("time")
        if MOMENTS in answer:
            question.spans_s = next(tasks)["spans"]
        if MASK in text:
            question.first_box = next(tasks)["box"]
        if MASK in answer:
            question.masks = next(tasks)["masks"]
        questions.append(question)
    return questions


def answer_questions(
    model: Any, questions: list[Question], *, as_text: bool = False, batch_size: int = 64
) -> list[Answer]:
    """Greedy answers of a model with TPO; with `as_text` boxes are words, in question and answer, and moments may be.

    A model without the mask head is not asked for masks.
    """
    from tpo_plugin.data import TPOCollator, VideoOptions, prompt_record, read_sample

    tpo, video = model.tpo, VideoOptions(**VIDEO)
    collate = TPOCollator(tpo, for_generation=True)
    answers: list[Answer] = []
    asked = [question for question in questions if _can(tpo, question)]
    for _, group in groupby(asked, key=lambda q: q.clip):
        same = list(group)
        for start in range(0, len(same), batch_size):
            samples = []
            for question in same[start : start + batch_size]:
                text = question.text
                tasks: list[dict[str, Any]] = [{"head": "region", "boxes": [box]} for box in question.given]
                if question.first_box is not None:
                    tasks.append({"head": "mask", "box": question.first_box, "time": 0.0})
                if as_text:
                    for box in question.given:
                        text = text.replace(PLACEHOLDER, box_as_text(box), 1)
                    tasks = []
                media = {"videos" if question.clip else "images": [question.media]}
                samples.append(read_sample(prompt_record(tpo, text, tasks=tasks, **media), video))
            batch = collate(samples)
            generated = tpo.generate(**batch, max_new_tokens=12, do_sample=False)
            new = generated.sequences[:, batch["input_ids"].shape[1] :]
            words = tpo.tokenizer.batch_decode(new, skip_special_tokens=True)
            for said, predictions in zip(words, generated.predictions, strict=True):
                answers.append(_as_answer(said, predictions, as_text))
    given = iter(answers)
    return [next(given) if _can(tpo, question) else Answer("") for question in questions]


def _can(tpo: Any, question: Question) -> bool:
    return question.wanted != "mask" or "mask" in tpo.heads


def _as_answer(said: str, predictions: list[Any], as_text: bool) -> Answer:
    answer = Answer(said.strip(), called=[CALLS.get(p.head, "moment") for p in predictions])
    if as_text and (box := text_as_box(answer.text)):
        answer.boxes, answer.called = [box], ["box", *answer.called]
    if as_text and (spans_s := text_as_moments(answer.text)):
        answer.spans_s, answer.called = spans_s, ["moment", *answer.called]
    for prediction in predictions:
        if prediction.value is None:
            continue
        if prediction.head_score is not None:
            answer.scores.setdefault(CALLS.get(prediction.head, "moment"), prediction.head_score)
        if prediction.head == "region":
            answer.boxes.append(prediction.value.tolist())
        elif prediction.head == "mask":
            answer.track = answer.track or {key: prediction.value[key] for key in ("masks", "times")}
        else:
            answer.spans_s += prediction.value["spans_s"].tolist()
            answer.saliency = prediction.value.get("saliency", np.empty(0)).tolist()
    return answer


def score(questions: list[Question], answers: list[Answer]) -> dict[str, Any]:
    """Shares from 0 to 1, for pictures and for clips; no box and no moment score an IoU of 0, words count where exact.

    A value is None where no question asks for it.
    """
    pairs = list(zip(questions, answers, strict=True))
    return {
        "images": _score([p for p in pairs if not p[0].clip], tuple(CHAT)),
        "clips": _score([p for p in pairs if p[0].clip], tuple(CLIP_CHAT)),
    }


def _score(pairs: list[tuple[Question, Answer]], chat: tuple[str, ...]) -> dict[str, Any]:
    boxes, moments = ([(q, a) for q, a in pairs if q.wanted == kind] for kind in ("box", "moment"))
    others = [(q, a) for q, a in pairs if q.wanted is None]
    overlaps, span_overlaps = [overlap(q, a) for q, a in boxes], [span_overlap(q, a) for q, a in moments]
    kinds = {kind: _mean([correct(q, a) for q, a in others if q.kind == kind]) for kind in (*chat, *GIVEN)}
    return {
        "num_region": len(boxes),
        "num_moment": len(moments),
        "num_other": len(others),
        "box_when_asked": _mean(["box" in a.called for _, a in boxes]),
        "box_otherwise": _mean(["box" in a.called for _, a in (*moments, *others)]),
        "moment_when_asked": _mean(["moment" in a.called for _, a in moments]),
        "moment_otherwise": _mean(["moment" in a.called for _, a in (*boxes, *others)]) if moments else None,
        "mask_otherwise": _mean(["mask" in a.called for _, a in (*boxes, *moments, *others)]),
        "acc50": _mean([value >= 0.5 for value in overlaps]),
        "mean_iou": _mean(overlaps),
        **{f"r1_{percent}": _mean([value >= percent / 100 for value in span_overlaps]) for percent in (30, 50, 70)},
        "moment_iou": _mean(span_overlaps),
        "chat": _mean([v for kind in chat if (v := kinds[kind]) is not None]),
        "given": _mean([v for kind in GIVEN if (v := kinds[kind]) is not None]),
        "kinds": kinds,
    }


def overlap(question: Question, answer: Answer) -> float:
    """IoU of the answer's first box with the wanted one; 0 for an answer without a box."""
    if not answer.boxes:
        return 0.0
    return float(iou(np.array(answer.boxes[0]), np.array(question.box)))


def span_overlap(question: Question, answer: Answer) -> float:
    """IoU of the answer's first moment with the wanted one that fits it best; 0 for an answer without a moment."""
    return span_iou(answer.spans_s[0], question.spans_s) if answer.spans_s else 0.0


def correct(question: Question, answer: Answer) -> bool:
    """Whether the answer is the wanted one, word for word."""
    return answer.text == question.answer


def _mean(values: list[Any]) -> float | None:
    return float(np.mean(values)) if values else None


def save_answers(path: Path, answers: list[Answer]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(asdict(answer)) + "\n" for answer in answers), encoding="utf-8")


def load_answers(path: Path) -> list[Answer]:
    """What `save_answers` wrote."""
    return [Answer(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
