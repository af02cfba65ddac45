"""What a user gives besides words: a box that is drawn, as the tasks of the placeholders in a question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tpo_plugin.asking import frame_time
from tpo_plugin.data.format import RecordFormat
from tpo_plugin.drawing import draws_clips
from tpo_plugin.errors import TPOError


@dataclass(frozen=True)
class Box:
    """A box that the user drew."""

    xyxy: tuple[float, float, float, float]
    """0 to 1 of the picture."""
    time_s: float | None = None
    """Of a video the second of the frame that it was drawn on."""


@dataclass(frozen=True)
class BoxHead:
    """A head that takes a box in a question."""

    name: str
    field: str
    """Of its task: "box" for one, "boxes" for a list of them."""
    follows: bool
    """Whether it draws whole clips."""

    @property
    def title(self) -> str:
        """Of its button."""
        return f"{'Follow this' if self.follows else 'What is this?'} ({self.name})"

    def wording(self) -> str:
        """A question for it."""
        return f"follow <{self.name}>." if self.follows else f"what is <{self.name}>?"

    def task(self, box: Box) -> dict[str, Any]:
        """The task of a placeholder that stands for a box."""
        given = list(box.xyxy)
        task = {"head": self.name, self.field: given if self.field == "box" else [given]}
        return task if box.time_s is None else task | {"time": box.time_s}


def box_heads(tpo: Any) -> dict[str, BoxHead]:
    """By name the heads that have an input token, and whose tasks have a field for boxes."""
    found = {}
    for name, codec in tpo.codecs.items():
        field = next((field for field in ("box", "boxes") if field in (codec.fields or ())), None)
        if tpo.tokens[name].input_token is not None and field is not None:
            found[name] = BoxHead(name, field, draws_clips(tpo.heads[name]))
    return found


def tasks_of(tpo: Any, text: str, box: Box | None) -> list[dict[str, Any]]:
    """The tasks of the placeholders in a question. Raises `TPOError` where there is no box, or a head takes none."""
    return list(_tasks(tpo, text, box))


def _tasks(tpo: Any, text: str, box: Box | None) -> Iterator[dict[str, Any]]:
    takes = box_heads(tpo)
    for match in RecordFormat.of(tpo).placeholder.finditer(text):
        name = match[1]
        if name not in takes:
            raise TPOError(f"the question has <{name}>, and the head {name!r} takes no box; leave it out")
        if box is None:
            raise TPOError(f"the question has <{name}>, which stands for a box; draw one with the mouse")
        yield takes[name].task(box)


def shown_time(text: str, box: Box | None, duration_s: float) -> float:
    """Second of the frame that an answer's boxes belong to: that of the question, of its box, or the middle."""
    stated, source = frame_time(None, text, duration_s)
    return box.time_s if source == "middle" and box is not None and box.time_s is not None else stated
