"""What a model answers to held-out questions, with nothing forced, and what that is worth."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tpo_shapes.baselines import iou

from tpo_plugin.data import TPOCollator, prompt_record, read_sample
from tpo_plugin.scores import overlap_metrics
from tpo_smollm.general import agreement
from tpo_smollm.records import box_of_text

MAX_NEW_TOKENS = 48
BATCH = 32


@dataclass
class Question:
    """One prompt, "box" and "chat" with a picture, "general" without."""

    kind: str
    text: str
    answer: str
    picture: str | None = None
    box: list[float] | None = None
    """The wanted box, 0 to 1, of kind "box"."""


@dataclass
class Answer:
    """What a model said."""

    text: str
    box: list[float] | None = None
    """The first one, of a head or of the text."""
    called: bool = False
    """Whether a head was called, or the answer has a box in words."""
    score: float | None = None
    """The head's own confidence, 0 to 1."""


def read_questions(heldout: Path, general: Sequence[str]) -> list[Question]:
    """Of each held-out picture the first question for a box and the first of conversation, then prompts without one."""
    questions = []
    for line in (heldout / "mixed_tpo.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        asked, answer = next(pair for pair in _turns(record) if "<region>" in pair[1])
        picture = str(heldout / record["image"])
        questions.append(Question("box", asked, answer, picture, record["tasks"][0]["boxes"][0]))
    for line in (heldout / "chat.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        questions.append(Question("chat", *_turns(record)[0], str(heldout / record["image"])))
    return questions + [Question("general", prompt, "") for prompt in general]


def _turns(record: dict[str, Any]) -> list[tuple[str, str]]:
    values = [line["value"].removeprefix("<image>\n") for line in record["conversations"]]
    return list(zip(values[::2], values[1::2], strict=True))


def answer_questions(model: Any, questions: Sequence[Question], batch_size: int = BATCH) -> list[Answer]:
    """Greedy answers of a model with TPO, one question a prompt, in the order given."""
    tpo = model.tpo
    collate = TPOCollator(tpo, for_generation=True)
    answers: list[Answer] = []
    for start in range(0, len(questions), batch_size):
        some = questions[start : start + batch_size]
        media = [{"images": [question.picture]} if question.picture else {} for question in some]
        records = [prompt_record(tpo, question.text, **kind) for question, kind in zip(some, media, strict=True)]
        batch = collate([read_sample(record) for record in records])
        generated = tpo.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        said = tpo.tokenizer.batch_decode(
            generated.sequences[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for text, predictions in zip(said, generated.predictions, strict=True):
            answers.append(_as_answer(text.strip(), predictions))
    return answers


def _as_answer(text: str, predictions: list[Any]) -> Answer:
    if not predictions:
        return Answer(text, box_of_text(text), '"bbox_2d"' in text)
    first = predictions[0]
    box = None if first.value is None else first.value.tolist()
    return Answer(text, box, True, first.head_score)


def measure(
    model: Any, questions: Sequence[Question], own: tuple[Sequence[str], Sequence[str]], timed: int
) -> tuple[dict[str, Any], list[Answer]]:
    """The scores of a model, and its answers. `own` are held-out prompts with the language model's own answers."""
    answers: list[Answer] = []
    for kind in ("box", "chat", "general"):  # questions of a batch are alike
        answers += answer_questions(model, [question for question in questions if question.kind == kind])
    found = score(questions, answers) | agreement(model, model.tpo.tokenizer, *own)
    boxes = [question for question in questions if question.kind == "box"]
    start = time.process_time()
    answer_questions(model, boxes[:timed], batch_size=1)
    alone = time.process_time() - start
    start = time.process_time()
    answer_questions(model, boxes[:BATCH])
    together = time.process_time() - start
    speed = {"cpu_ms_an_answer": 1000 * alone / timed, "boxes_a_cpu_s": len(boxes[:BATCH]) / together}
    return found | speed, answers


def score(questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, Any]:
    """Shares from 0 to 1; an answer without a box has an IoU of 0, words count where the whole sentence is right.

    "ap@0.5" is by the scores of the heads, None where boxes have none.
    """
    pairs = list(zip(questions, answers, strict=True))
    of = {kind: [(q, a) for q, a in pairs if q.kind == kind] for kind in ("box", "chat", "general")}
    overlaps = [_overlap(question, answer) for question, answer in of["box"]]
    scored = [(a.score, value) for (_, a), value in zip(of["box"], overlaps, strict=True) if a.score is not None]
    metrics = overlap_metrics(*torch.tensor(scored).unbind(-1), len(overlaps)) if scored else {}
    return {
        "num": {kind: len(found) for kind, found in of.items()},
        "emission": _share(answer.called for _, answer in of["box"]),
        "false_chat": _share(answer.called for _, answer in of["chat"]),
        "false_general": _share(answer.called for _, answer in of["general"]),
        "acc@0.5": _share(value >= 0.5 for value in overlaps),
        "mean_iou": float(np.mean(overlaps)),
        "ap@0.5": metrics.get("ap@0.5"),
        "chat": _share(answer.text == question.answer for question, answer in of["chat"]),
    }


def _overlap(question: Question, answer: Answer) -> float:
    return 0.0 if answer.box is None else float(iou(np.array(answer.box), np.array(question.box)))


def _share(values: Any) -> float:
    return float(np.mean(list(values)))


def save_answers(path: Path, answers: Sequence[Answer]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(asdict(answer)) + "\n" for answer in answers), encoding="utf-8")
