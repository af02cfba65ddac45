"""Pictures in which things have names and boxes, and the questions that can be asked about them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from zlib import crc32

import typer

from tpo_head_region.formats.common import PictureFormat, in_order, task
from tpo_head_region.formats.wordings import EVERY, MANY, NONE, ONE, WHERE
from tpo_plugin.convert import Boxes, Entry, Picture, Place, Report, picture, worded


@dataclass(frozen=True)
class Thing:
    """Something that is marked in a picture."""

    id: str
    name: str
    box: Any
    """As the source has it."""
    place: Place
    """Of the box."""
    group: bool = False
    """Whether it stands for several, which cannot be told apart: no target of a box."""


@dataclass(frozen=True)
class Scene:
    """A picture with what is marked in it."""

    id: str
    path: Path
    place: Place
    things: Sequence[Thing]
    size: tuple[int, int] | None = None
    """(width, height) as the source states it."""
    absent: Collection[str] = ()
    """Names of which the source says that the picture shows none."""
    partly: Collection[str] = ()
    """Names of which not everything is marked."""


@dataclass(kw_only=True)
class SceneFormat(PictureFormat):
    """A source of scenes."""

    ask: Annotated[
        Literal["all", "where", "both"],
        typer.Option(help="Ask for all things of a name, for where a thing is that is alone of its name, or both."),
    ] = "all"
    negatives: Annotated[
        int, typer.Option(min=0, help="Questions for each picture about a name that it does not show.")
    ] = 0
    most: Annotated[int, typer.Option(min=1, help="Most boxes in an answer; with more, it is not asked.")] = 20

    set_name = "scene"
    """With which the ids of its records begin."""

    def scenes(self, report: Report) -> Iterator[Scene]:
        """The scenes of the source."""
        raise NotImplementedError(f"{type(self).__name__} must define scenes")

    def boxes(self, report: Report) -> Boxes:
        """The convention of the source's boxes."""
        raise NotImplementedError(f"{type(self).__name__} must define boxes")

    def entries(self, report: Report) -> Iterator[Entry]:
        boxes = self.boxes(report)
        for scene in self.scenes(report):
            with report.faults():
                shown = picture(scene.path, scene.place, scene.size, self.boxes_on)
                yield from self._questions(scene, shown, boxes, report)

    def _questions(self, scene: Scene, shown: Picture, boxes: Boxes, report: Report) -> Iterator[Entry]:
        by_name: dict[str, list[Thing]] = {}
        for thing in scene.things:
            by_name.setdefault(thing.name, []).append(thing)
        if not by_name and not (self.negatives and scene.absent):
            report.leave_out("a picture in which nothing is marked", scene.place)
        for name, things in by_name.items():
            place = f"{scene.place}: {name!r}"
            with report.faults():
                read = [boxes.read(thing.box, shown, thing.place) for thing in things if not thing.group]
                if len(read) < len(things):
                    report.leave_out("a group is marked as one", place)
                    continue
                if self.ask != "all" and len(read) == 1 and name not in scene.partly:
                    yield _question(f"{self.set_name}:{things[0].id}", WHERE, f"the {name}", ONE, read, scene)
                elif self.ask == "where":
                    report.leave_out("not alone of its name, as --ask where needs it", place)
                if self.ask != "where":
                    if name in scene.partly:
                        report.leave_out("not every thing of that name is marked", place)
                    elif len(read) > self.most:
                        report.leave_out("more boxes than --most allows", place)
                    else:
                        answers = ONE if len(read) == 1 else MANY
                        yield _question(f"{self.set_name}:{scene.id}:{name}", EVERY, name, answers, read, scene)
        absent = sorted(set(scene.absent) - set(by_name), key=lambda name: crc32(f"{scene.id}:{name}".encode()))
        for name in absent[: self.negatives]:
            id = f"{self.set_name}:{scene.id}:{name}"
            turns = [worded(EVERY, id, name=name), worded(NONE, id, name=name)]
            yield Entry(id, turns, images=[scene.path], picture_ids=[scene.id])


def _question(
    id: str, wordings: Sequence[str], name: str, answers: Sequence[str], boxes: list[list[float]], scene: Scene
) -> Entry:
    turns = [worded(wordings, id, name=name), worded(answers, id)]
    return Entry(id, turns, [task(in_order(boxes))], images=[scene.path], picture_ids=[scene.id])
