"""Asking a run the questions of an evaluation, a batch at a time; each is kept in a file, and not asked again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device

from tpo_plugin.asking import Answer, ask_each
from tpo_plugin.atomic import replace_file
from tpo_plugin.data import read_sample
from tpo_plugin.data.dataset import Sample
from tpo_plugin.data.records import MEDIA_TAG, Record, Records
from tpo_plugin.errors import MediaError, RecordError, TPOError
from tpo_plugin.evaluate.questions import Question, question_of
from tpo_plugin.training.config import DataConfig


@dataclass
class Line:
    """A question with the answer, a line of `predictions.jsonl`."""

    record: str
    """File and line."""
    id: str
    """The record's own."""
    turn: int
    """Which of its turns is answered, from 0."""
    question: str = ""
    reference: str = ""
    """What the record says, without the tokens of heads."""
    text: str = ""
    """What the model said, without the tokens of heads."""
    wants: list[str] = field(default_factory=list)
    """Heads that the record's answer calls, in the order of the run's."""
    called: list[str] = field(default_factory=list)
    """Heads that this answer calls."""
    predictions: list[dict[str, Any]] = field(default_factory=list)
    """As `Prediction.to_json` gives them; with "value_in_units", pixels or seconds, where there is a medium."""
    frames: list[int] = field(default_factory=list)
    """Frames that were read of each video."""
    width: int | None = None
    height: int | None = None
    """Pixels of the first image, or frame."""
    duration_s: float | None = None
    """Of the first video."""
    failure: str = ""
    """Why it could not be asked, or not be scored."""
    quality: dict[str, float] = field(default_factory=dict)
    """By head that is wanted, one number of the head's, the higher the better."""


@dataclass
class Asked:
    """One question's line, and what of its answer the heads are measured by."""

    number: int
    line: Line
    outputs: dict[str, tuple[dict[str, Any], int]]
    """By head, what its forward gave, and for how many task tokens."""


@dataclass(frozen=True)
class Asking:
    """How the questions are asked."""

    route: str | None
    alone: bool
    max_new_tokens: int


class Answers:
    """The answers of an evaluation in a folder, a file for each batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, batch: int) -> Path:
        return self.folder / f"{batch:08d}.pt"

    def save(self, batch: int, asked: Sequence[Asked], seconds: dict[str, float]) -> None:
        """Raises `TPOError` where a head gives what no file of tensors can hold."""
        plain = [{"number": a.number, "line": asdict(a.line), "outputs": a.outputs} for a in asked]
        content = send_to_device({"asked": plain, "seconds": seconds}, "cpu")
        replace_file(self.path(batch), lambda name: torch.save(content, name))

    def load(self, batch: int) -> tuple[list[Asked], dict[str, float]]:
        """What `save` was given. Raises `TPOError` for a file that is damaged."""
        try:
            content = torch.load(self.path(batch), map_location="cpu", weights_only=True)
            asked = [Asked(a["number"], Line(**a["line"]), a["outputs"]) for a in content["asked"]]
            return asked, content["seconds"]
        except Exception as error:  # of pickle, of torch, of zip files
            raise TPOError(
                f"{self.path(batch)}: cannot be read ({error}); remove it, and the same call asks its questions again"
            ) from error

    def good(self, batch: int) -> tuple[list[Asked], dict[str, float]]:
        """As `load`, without the questions that could not be asked; nothing where the batch has not been asked."""
        if not self.path(batch).is_file():
            return [], {}
        asked, seconds = self.load(batch)
        return [one for one in asked if not one.line.failure], seconds

    def any(self) -> bool:
        """Whether a question has been answered."""
        return any(self.good(int(path.stem))[0] for path in self.folder.glob("*.pt"))


def ask_batch(
    model: Any, sources: Sequence[Records], batch: Sequence[Question], reading: DataConfig, asking: Asking
) -> tuple[list[Asked], dict[str, float]]:
    """The answers to a batch, and the seconds that reading media and generating took.

    A question that cannot be asked is a failure, with the reason.
    """
    start = time.monotonic()
    lines: dict[int, Line] = {}
    samples: list[tuple[Question, Sample]] = []
    for question in batch:
        records = sources[question.source]
        place = records.place(question.index)
        lines[question.number] = Line(place, "?", question.turn)
        try:
            record = question_of(records[question.index], question.turn, alone=asking.alone)
            lines[question.number] = _line(model.tpo, record, question.turn)
            sample = records.checked(read_sample(record, reading.video, reading.image))
        except (MediaError, RecordError) as error:
            lines[question.number].failure = str(error)
            continue
        _note_media(lines[question.number], sample)
        samples.append((question, sample))
    read = time.monotonic()
    outputs: dict[int, dict[str, tuple[dict[str, Any], int]]] = {}
    given = [sample for _, sample in samples]
    answers = ask_each(model, given, route=asking.route, max_new_tokens=asking.max_new_tokens) if given else []
    for (question, _), answer in zip(samples, answers, strict=True):
        if isinstance(answer, TPOError):
            lines[question.number].failure = str(answer)
            continue
        _note_answer(model.tpo, lines[question.number], answer)
        outputs[question.number] = answer.outputs
    seconds = {"read": read - start, "ask": time.monotonic() - read}
    return [Asked(number, line, outputs.get(number, {})) for number, line in lines.items()], seconds


def _line(tpo: Any, record: Record, turn: int) -> Line:
    said = record.turns[-1]
    wants = {task["head"] for task in said.tasks}
    asked = record.turns[-2].text if len(record.turns) > 1 else ""
    return Line(
        record.place,
        record.id,
        turn,
        MEDIA_TAG.sub("", asked).strip(),
        without_tokens(tpo, said.text),
        wants=[name for name in tpo.heads if name in wants],
    )


def without_tokens(tpo: Any, text: str) -> str:
    """A record's answer as a model would be heard to say it."""
    for tokens in tpo.tokens.values():
        text = text.replace(tokens.trigger + tokens.task_token, "")
    return text.strip()


def _note_media(line: Line, sample: Sample) -> None:
    line.frames = [len(clip.frames) for clip in sample.videos]
    if sample.videos:
        clip = sample.videos[0]
        line.width, line.height, line.duration_s = clip.width, clip.height, float(clip.duration_s)
    elif sample.images:
        line.width, line.height = sample.images[0].size


def _note_answer(tpo: Any, line: Line, answer: Answer) -> None:
    called = {prediction.head for prediction in answer.predictions}
    line.text, line.called = answer.text, [name for name in tpo.heads if name in called]
    for prediction in answer.predictions:
        plain = prediction.to_json()
        if prediction.value is not None and line.width is not None:
            units = prediction.to_units(width=line.width, height=line.height, duration=line.duration_s)
            plain["value_in_units"] = tpo.heads[prediction.head].to_json(units)
        line.predictions.append(plain)
