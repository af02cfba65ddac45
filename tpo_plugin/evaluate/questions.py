"""The questions of an evaluation: every answer of every record, in batches that any number of ranks may share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from tpo_plugin.data.records import MEDIA_TAG, Record, Records, Turn
from tpo_plugin.errors import RecordError
from tpo_plugin.training.free import until


@dataclass(frozen=True)
class Question:
    """One answer of a record, which the model is to give itself."""

    number: int
    """Its place among all questions of the evaluation, from 0."""
    source: int
    """Which of the files."""
    index: int
    """Which of its records."""
    turn: int
    """Which of its turns is the answer; -1 of a record that breaks the format."""
    media: tuple[bool, bool] = (False, False)
    """Whether it is about images, and about videos."""
    length: int = 0
    """Characters of what is asked, and said before."""


def list_questions(
    sources: Sequence[Records], *, alone: bool, route: str | None = None, limit: int | None = None
) -> list[Question]:
    """Those of all files, in their order; with `route` those alone whose answer wants that head; at most `limit`."""
    questions: list[Question] = []
    for number, records in enumerate(sources):
        for index in range(len(records)):
            for found in _of_record(records, number, index, alone, route):
                questions.append(replace(found, number=len(questions)))
                if len(questions) == limit:
                    return questions
    return questions


def _of_record(records: Records, source: int, index: int, alone: bool, route: str | None) -> Iterator[Question]:
    try:
        record = records[index]
    except RecordError:  # of a file too large to be checked when it was opened
        yield Question(0, source, index, -1)
        return
    for turn, said in enumerate(record.turns):
        if said.role == "assistant" and (route is None or any(task["head"] == route for task in said.tasks)):
            asked = question_of(record, turn, alone=alone)
            length = sum(len(t.text) for t in asked.turns[:-1])
            yield Question(0, source, index, turn, (bool(asked.images), bool(asked.videos)), length)


def question_of(record: Record, turn: int, *, alone: bool) -> Record:
    """The conversation up to and with the answer at `turn`; with `alone` without the turns before its question."""
    if not alone:
        return until(record, turn + 1)
    system = tuple(t for t in record.turns[:1] if t.role == "system")
    asked = record.turns[turn - 1] if turn and record.turns[turn - 1].role == "user" else Turn("user", "")
    images, videos = _num_media(record.turns[: turn - 1])
    own_images, own_videos = _num_media([asked])
    if own_images or own_videos:
        shown = record.images[images : images + own_images], record.videos[videos : videos + own_videos]
    else:
        shown = record.images[:images], record.videos[:videos]
        asked = replace(asked, text="<image>\n" * images + "<video>\n" * videos + asked.text)
    return replace(record, turns=(*system, asked, record.turns[turn]), images=shown[0], videos=shown[1])


def _num_media(turns: Sequence[Turn]) -> tuple[int, int]:
    """Tags of images and of videos."""
    tags = [tag for turn in turns for tag in MEDIA_TAG.findall(turn.text)]
    return tags.count("image"), tags.count("video")


def batches_of(questions: Sequence[Question], batch_size: int) -> list[list[Question]]:
    """Batches of like media and like lengths, whatever the number of ranks that share them."""
    order = sorted(questions, key=lambda q: (q.media, q.length, q.number))
    batches = []
    for _, group in groupby(order, key=lambda q: q.media):
        same = list(group)
        batches += [same[start : start + batch_size] for start in range(0, len(same), batch_size)]
    return batches
