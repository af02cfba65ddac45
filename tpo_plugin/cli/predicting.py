"""The questions of `tpo predict`, and their answers as they are printed and drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from PIL import Image

from tpo_plugin.asking import Answer, ask_each, frame_time
from tpo_plugin.data import Record, Records, prompt_record, read_sample
from tpo_plugin.data.dataset import Sample
from tpo_plugin.drawing import Drawing, draw, found_in
from tpo_plugin.errors import RecordError, TPOError, did_you_mean
from tpo_plugin.training.config import DataConfig

VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".3gp", ".ts", ".flv", ".wmv", ".ffconcat")
"""Suffixes of videos; other files are images."""


@dataclass
class Question:
    """What is asked, before its media are read."""

    name: str
    """Of the file or record, in messages."""
    record: Record | TPOError
    """Or why there is none."""
    named: dict[str, Any] = field(default_factory=dict)
    """What it is about, for JSON."""

    @property
    def has_video(self) -> bool:
        """Whether it is about a video."""
        return isinstance(self.record, Record) and bool(self.record.videos)

    @property
    def stem(self) -> str:
        """For the name of a drawing."""
        media = [] if isinstance(self.record, Exception) else [*self.record.images, *self.record.videos]
        return media[0].stem if media else "text"


@dataclass
class Asked:
    """A question with its media."""

    sample: Sample
    picture: Image.Image | None = None
    """What boxes belong to: the first image, or a frame of the video; None where it is about text alone."""
    duration_s: float | None = None
    """Of the video."""
    plain: dict[str, Any] = field(default_factory=dict)
    """What of it is told in JSON."""


@dataclass
class Result:
    """A question with its answer."""

    asked: Asked
    answer: Answer
    heads: Any

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        picture, found = self.asked.picture, []
        for prediction in self.answer.predictions:
            plain = prediction.to_json()
            if prediction.value is not None and picture is not None:
                size = {"width": picture.width, "height": picture.height}
                units = prediction.to_units(**size, duration=self.asked.duration_s)
                plain["value_in_units"] = self.heads[prediction.head].to_json(units)
            found.append(plain)
        return self.asked.plain | {"text": self.answer.text, "predictions": found}

    def draw(self, output: Path) -> Drawing:
        """What `drawing.draw` writes, with the answer below a picture; nothing for a question about text alone."""
        if self.asked.picture is None:
            return Drawing()
        clip = self.asked.sample.videos[0] if self.asked.sample.videos else None
        found = found_in(self.answer.predictions)
        return draw(self.heads, found, self.asked.picture, clip, output, caption=self.answer.text)


def question_of(
    tpo: Any, prompt: str, tasks: Sequence[dict[str, Any]], images: Sequence[Path], videos: Sequence[Path]
) -> Question:
    """One question about all these files. Raises `RecordError`."""
    record = prompt_record(tpo, prompt, images=images, videos=videos, tasks=tasks)
    named = {kind: _one_or_all(paths) for kind, paths in (("image", images), ("video", videos)) if paths}
    return Question(", ".join(map(str, (*images, *videos))) or "the question", record, named)


def of_files(tpo: Any, files: Sequence[Path], prompt: str, tasks: Sequence[dict[str, Any]]) -> list[Question]:
    """The question about each file, and about each in a folder, by name. Raises `TPOError` for a folder of none."""
    Image.init()
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN} | set(VIDEOS)
    questions = []
    for given in files:
        found = [given]
        if given.is_dir():
            found = [p for p in sorted(given.rglob("*")) if p.suffix.lower() in readable and not p.is_dir()]
            if not found:
                raise TPOError(f"{given}: holds neither an image nor a video; give another folder, or files by name")
        for path in found:
            is_video = path.suffix.lower() in VIDEOS
            questions.append(question_of(tpo, prompt, tasks, [] if is_video else [path], [path] if is_video else []))
    return questions


def of_records(tpo: Any, data: Path, media: Path | None, confine: bool) -> Iterator[Question]:
    """The last question of each record."""
    records = Records(data, tpo, media_root=media, open_ended=True, confine=confine)
    for index in range(len(records)):
        place = records.place(index)
        try:
            record: Record | TPOError = records[index].prompt()
        except RecordError as error:  # of a file too large to be checked when it was opened
            record = error
        named: dict[str, Any] = {"record": place}
        if isinstance(record, Record):
            named |= {"id": record.id}
            media_of = (("image", record.images), ("video", record.videos))
            named |= {kind: _one_or_all(paths) for kind, paths in media_of if paths}
        yield Question(place, record, named)


def answered(
    model: Any,
    questions: Iterable[Question],
    reading: DataConfig,
    *,
    route: str | None,
    time: float | None,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[tuple[Question, Result | TPOError]]:
    """Each question with its answer, or with why there is none, in their order.

    Raises `TPOError` for a `route` that is none. `time` is the second of a video that is looked at.
    """
    heads = model.tpo.heads
    if route is not None and route not in heads:
        raise TPOError(f"route={route!r} is not an applied head{did_you_mean(route, heads)}")
    left = iter(questions)
    while batch := list(islice(left, batch_size)):
        read = [_read(question, reading, time) for question in batch]
        answers: dict[int, Answer | TPOError] = {}
        # Of like media, for a processor may not take others in a batch.
        good = [(n, asked.sample) for n, asked in enumerate(read) if isinstance(asked, Asked)]
        for _, group in groupby(sorted(good, key=_media), key=_media):
            same = list(group)
            found = ask_each(model, [sample for _, sample in same], route=route, max_new_tokens=max_new_tokens)
            answers |= zip((n for n, _ in same), found, strict=True)
        for number, (question, asked) in enumerate(zip(batch, read, strict=True)):
            if isinstance(asked, TPOError):
                yield question, asked
                continue
            answer = answers[number]
            yield question, answer if isinstance(answer, TPOError) else Result(asked, answer, heads)


def _read(question: Question, reading: DataConfig, time: float | None) -> Asked | TPOError:
    if isinstance(question.record, TPOError):
        return question.record
    try:
        sample = read_sample(question.record, reading.video, reading.image)
        asked = Asked(sample, plain=dict(question.named))
        if sample.videos:
            asked.duration_s = float(sample.videos[0].duration_s)
            time_s, source = frame_time(time, sample.record.turns[-1].text, asked.duration_s)
            asked.picture = sample.picture(time_s)
            asked.plain |= {"duration_s": asked.duration_s, "frame": {"time_s": time_s, "from": source}}
        elif sample.images:
            asked.picture = sample.images[0]
    except TPOError as error:
        return error
    if asked.picture is not None:
        asked.plain |= {"width": asked.picture.width, "height": asked.picture.height}
    return asked


def _media(numbered: tuple[int, Sample]) -> tuple[bool, bool]:
    sample = numbered[1]
    return bool(sample.images), bool(sample.videos)


def _one_or_all(paths: Sequence[Any]) -> str | list[str]:
    return str(paths[0]) if len(paths) == 1 else [str(path) for path in paths]
