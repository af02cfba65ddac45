"""Conversations about media: `conversations` (LLaVA, ShareGPT), `messages` (OpenAI, TRL, ms-swift, LLaMA-Factory), or
`prompt` and `completion` (TRL)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from tpo_head_region.formats.common import HEAD
from tpo_head_region.formats.media import medium
from tpo_plugin.convert import (
    MISSING,
    Boxes,
    Entry,
    Format,
    Order,
    Picture,
    Place,
    Report,
    Rows,
    Side,
    StoredPicture,
    picture,
)

ROLES = {"role": ("system", "user", "assistant"), "from": ("system", "human", "gpt")}
"""By the key that a turn names its speaker with."""

_TAG = re.compile(r"<(image|video)>")


@dataclass(frozen=True)
class Dialogue:
    """A conversation with its media."""

    id: str
    place: Place
    turns: list[tuple[Place, str]]
    """What human and model say in turn, a tag `<image>` or `<video>` for each medium, or none at all."""
    system: str | None
    images: list[Path | StoredPicture]
    videos: list[Path]

    def entry(self, turns: Sequence[str], tasks: Sequence[dict[str, Any]] = ()) -> Entry:
        """With these texts in place of its own."""
        return Entry(self.id, turns, tasks, self.images, self.videos, self.system)


@dataclass
class _Media:
    """The media of one kind: those in the content of messages, and those of the row's column."""

    within: list[Any] = field(default_factory=list)
    column: list[Any] = field(default_factory=list)
    without_source: int = 0
    """Parts of content that only say that a medium of the column stands there."""


def read_dialogue(value: Any, place: Place, id: str, root: Path) -> Dialogue:
    """The conversation of a row. Raises `Fault` with the field that is wrong, `MediaError` for a missing file."""
    if not isinstance(value, Mapping):
        raise place.fault(value, "an object")
    media = {kind: _Media(column=_column(value, kind, place)) for kind in ("image", "video")}
    turns: list[tuple[Place, str]] = []
    system = None
    for number, (where, role, text) in enumerate(_turns(value, place, media)):
        if role == 0 and number == 0:
            system = text
            continue
        if role != len(turns) % 2 + 1:
            speaker = ("a system turn", "a turn of the human", "a turn of the model")[role]
            raise where.fault(speaker, "human and model to speak in turn")
        turns.append((where, text))
    if not turns or len(turns) % 2:
        raise place.fault("a conversation without an answer at its end", "one that ends with the model's turn")
    tags = [tag for _, text in turns for tag in _TAG.findall(text)]
    found: dict[str, list[Any]] = {}
    for kind, of_kind in media.items():
        if of_kind.within and of_kind.column:
            raise place.at(f"{kind}s").fault(f"beside {kind}s in the content", "them in one of the two places")
        values = of_kind.within or of_kind.column
        if tags and tags.count(kind) != len(values):
            raise place.at(f"{kind}s").fault(f"of length {len(values)}", f"{tags.count(kind)}, one for each <{kind}>")
        name = re.sub(r"[^\w.-]+", "_", id)
        found[kind] = [
            medium(item, f"{name}_{k}" if k else name, root, place.at(f"{kind}s", k)) for k, item in enumerate(values)
        ]
    return Dialogue(id, place, turns, system, found["image"], found["video"])


def _column(value: Mapping[str, Any], kind: str, place: Place) -> list[Any]:
    given = value.get(f"{kind}s") if value.get(f"{kind}s") is not None else value.get(kind)
    if given is None:
        return []
    if isinstance(given, (str, dict)):
        return [given]
    if not isinstance(given, (list, tuple)):
        raise place.at(f"{kind}s").fault(given, "a path or a list of paths")
    return list(given)


def _turns(value: Mapping[str, Any], place: Place, media: dict[str, _Media]) -> Iterator[tuple[Place, int, str]]:
    """(place, index in `ROLES`, text) of each turn."""
    if value.get("conversations") is not None:
        key, fields = "from", ["conversations"]
    elif value.get("messages") is not None:
        key, fields = "role", ["messages"]
    elif value.get("prompt") is not None and value.get("completion") is not None:
        key, fields = "role", ["prompt", "completion"]
    else:
        raise place.at("messages").fault(MISSING, "messages, conversations, or prompt and completion")
    turns = [
        (place.at(name, index), turn)
        for number, name in enumerate(fields)
        for index, turn in enumerate(_listed(value[name], place.at(name), ("user", "assistant")[number]))
    ]
    contents = [turn.get("value" if key == "from" else "content") for _, turn in turns]
    for (where, turn), content in zip(turns, contents, strict=True):
        role = turn.get(key)
        if role not in ROLES[key]:
            raise where.at(key).fault(MISSING if role is None else role, f"one of {', '.join(ROLES[key])}")
        field = where.at("value" if key == "from" else "content")
        if isinstance(content, str):
            yield field, ROLES[key].index(role), content
        elif isinstance(content, (list, tuple)) and key == "role":
            yield (
                field,
                ROLES[key].index(role),
                "".join(_part(part, field.at(k), media) for k, part in enumerate(content)),
            )
        else:
            raise field.fault(MISSING if content is None else content, "a text" + " or a list" * (key == "role"))
    if any(of_kind.without_source for of_kind in media.values()):
        for (where, _), content in zip(turns, contents, strict=True):
            if isinstance(content, str):
                raise where.at("content").fault(content, 'a list, where other content holds {"type": "image"}')


def _listed(value: Any, place: Place, role: str) -> list[Mapping[str, Any]]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in value):
        raise place.fault(value, "a list of turns")
    return list(value)


def _part(part: Any, place: Place, media: dict[str, _Media]) -> str:
    """The text of one part of a content; a medium becomes its tag."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise place.at("text").fault(part.get("text"), "a text")
        return part["text"]
    if kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
        if not isinstance(url, str):
            raise place.at("image_url", "url").fault(url, "a text")
        media["image"].within.append(url)
        return "<image>"
    if kind in media:
        if part.get(kind) is None:
            media[kind].without_source += 1
        else:
            media[kind].within.append(part[kind])
        return f"<{kind}>"
    raise place.at("type").fault(kind, "one of text, image_url, image, video")


@dataclass(kw_only=True)
class DialogueFormat(Format):
    """A source of conversations."""

    heads = (HEAD,)
    set_name = "messages"

    source: Annotated[Path, typer.Argument(help="The conversations: JSON Lines, a JSON list, or Parquet.")]
    pictures: Annotated[
        Path | None, typer.Option(help="Folder at which relative paths start; by default that of the source.")
    ] = None

    def start(self, report: Report) -> None:
        """Called before the first row."""

    def dialogue(self, row: Any, place: Place, id: str, root: Path) -> Dialogue:
        """The conversation in a row; relative paths start at `root`."""
        return read_dialogue(row, place, id, root)

    def entry(self, dialogue: Dialogue, row: Mapping[str, Any]) -> Entry:
        """The entry of a conversation; `row` is the object that it stands in."""
        return dialogue.entry([text for _, text in dialogue.turns])

    def entries(self, report: Report) -> Iterator[Entry]:
        rows, root = Rows(self.source), self.pictures or self.beside(self.source)
        self.start(report)
        for index in report.track(range(len(rows))):
            with report.faults():
                row, place = rows[index], rows.place(index)
                id = row.get("id") if isinstance(row, Mapping) else None
                name = f"{self.set_name}:{self.source.stem}:{index if id is None else id}"
                yield self.entry(self.dialogue(row, place, name, root), row)


@dataclass(kw_only=True)
class BoxDialogueFormat(DialogueFormat):
    """A source of conversations with boxes."""

    order: ClassVar[Order] = "xyxy"
    full: ClassVar[float | None] = None
    """See `Boxes`."""

    boxes_on: Annotated[
        Side | None,
        typer.Option(help="Of pictures that EXIF turns: whether their boxes fit them as stored, or as shown."),
    ] = None

    def start(self, report: Report) -> None:
        self._report = report
        self._boxes = self.boxes(report)

    def boxes(self, report: Report) -> Boxes:
        """The convention of the numbers."""
        return Boxes(report, self.order, self.full)

    def shown(self, dialogue: Dialogue, number: int | None = None, stated: tuple[int, int] | None = None) -> Picture:
        """The picture that boxes of a conversation are of: that of a number, or the only one."""
        if number is None and len(dialogue.images) != 1:
            given = f"of length {len(dialogue.images)}"
            raise dialogue.place.at("images").fault(given, "one picture, to know which one the boxes are of")
        return picture(dialogue.images[number or 0], dialogue.place.at("images"), stated, self.boxes_on)
