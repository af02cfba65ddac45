"""Examples to begin with: questions of held-out records, some of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tpo_plugin.app.inputs import Box, box_heads
from tpo_plugin.data import Record, Records, Turn, read_sample
from tpo_plugin.data.format import RecordFormat
from tpo_plugin.errors import RecordError, TPOError
from tpo_plugin.training.config import DataSource, TrainConfig

NUM_SHOWN, NUM_OF_A_KIND, NUM_LOOKED_AT = 12, 2, 200
_SIDE = 256


@dataclass(frozen=True)
class Example:
    """A question about a picture or a video."""

    medium: Path
    text: str
    """With a placeholder for a given box."""
    box: Box | None
    thumbnail: Image.Image


def sources_of(config: TrainConfig, files: Sequence[str]) -> list[DataSource]:
    """The files; where none is given the held-out records that the stages of the run name, the last stage's first."""
    if files:
        return [DataSource(file=file) for file in files]
    stages = reversed(config.stages.values())
    return list({source.file: source for stage in stages for source in stage.eval_data}.values())


def examples_of(sources: Sequence[DataSource], tpo: Any, config: TrainConfig) -> list[Example]:
    """At most `NUM_SHOWN`, in turn of each source. Raises `TPOError` for a source that cannot be read."""
    reading, seen, shown = config.data, Counter[Any](), list[Example]()
    found = [_of_source(source, tpo, reading.confine) for source in sources]
    while found and len(shown) < NUM_SHOWN:
        for questions in list(found):
            asked = next(questions, None)
            if asked is None:
                found.remove(questions)
                continue
            kind, record, text, box = asked
            medium = (*record.images, *record.videos)[0]
            if (
                seen[kind] == NUM_OF_A_KIND
                or len(shown) == NUM_SHOWN
                or (isinstance(medium, Path) and not medium.is_file())
            ):
                continue
            try:
                sample = read_sample(record, reading.video, reading.image)
                thumbnail = sample.picture(None if box is None else box.time_s).convert("RGB")
            except TPOError:  # `tpo check` says what is wrong with it
                continue
            seen[kind] += 1
            thumbnail.thumbnail((_SIDE, _SIDE))
            file = medium if isinstance(medium, Path) else medium.file()
            shown.append(Example(file, text, box, thumbnail))
    return shown


def _of_source(source: DataSource, tpo: Any, confine: bool) -> Iterator[tuple[Any, Record, str, Box | None]]:
    """Each question about one medium, with its kind: what is given, what is wanted, and about what."""
    records = Records(source.file, tpo, media_root=source.media, open_ended=True, confine=confine)
    for index in range(min(len(records), NUM_LOOKED_AT)):
        try:
            record = records[index]
        except RecordError:  # of a large file, whose records are checked on first use
            continue
        if len((*record.images, *record.videos)) != 1:
            continue
        for number, turn in enumerate(record.turns):
            if turn.role != "user":
                continue
            text, box = _plain(tpo, turn)
            answer = record.turns[number + 1 : number + 2]
            wanted = tuple(task["head"] for said in answer for task in said.tasks)
            kind = (bool(record.videos), tuple(task["head"] for task in turn.tasks), wanted)
            yield kind, record, text, box


def _plain(tpo: Any, turn: Turn) -> tuple[str, Box | None]:
    """A question as its user writes it, and its box."""
    text, box, takes = turn.text, None, box_heads(tpo)
    for task in turn.tasks:
        name = task["head"]
        tokens = tpo.tokens[name].input_token * tpo.codecs[name].num_tokens(task)
        text = text.replace(tokens, f"<{name}>", 1)
        if name in takes:
            given = task[takes[name].field]
            box = Box(tuple(given if takes[name].field == "box" else given[0]), task.get("time"))
    for tag in ("<image>", "<video>"):
        text = text.replace(tag, "")
    return text.strip(), box


def wordings(examples: Sequence[Example], tpo: Any) -> dict[str, str]:
    """By head that takes a box a question for it: that of an example, else one of our own."""
    found = {name: head.wording() for name, head in box_heads(tpo).items()}
    format = RecordFormat.of(tpo)
    for example in reversed(examples):
        for match in format.placeholder.finditer(example.text):
            found[match[1]] = example.text
    return found
