"""Conversations about videos, without spans: VideoChat2-IT and LLaVA-Hound, which train beside the tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import tpo_plugin as tpo
from tpo_head_temporal.formats.moments import given, list_of, object_of, text_of
from tpo_plugin.convert import Entry, Format, FrameList, Place, Report, Rows

HOUND_FPS = 1.0
"""Nominal: the frames of LLaVA-Hound are published without their times."""


@dataclass(kw_only=True)
class Conversations(Format):
    """A layout of conversations about videos or pictures."""

    source: Annotated[Path, typer.Argument(help="The annotations.")]
    media: Annotated[Path, typer.Option(help="Folder that the paths of videos and pictures start from.")]

    def entries(self, report: Report) -> Iterator[Entry]:
        rows = Rows(self.source)
        for index in report.track(range(len(rows))):
            with report.faults():
                place = rows.place(index)
                yield self.entry(index, object_of(rows[index], place), place)

    def entry(self, index: int, row: dict[str, Any], place: Place) -> Entry:
        """The entry of a row. Raises `Fault`."""
        raise NotImplementedError(f"{type(self).__name__} must define entry")


@dataclass(kw_only=True)
class VideoChat2IT(Conversations):
    """VideoChat2-IT: a JSON list of video or image, with QA: i (instruction), q and a.

    Layout as its loader reads it, never seen. A row that plays a part of its video (start, end) is left out: records
    play the whole.
    """

    def entry(self, index: int, row: dict[str, Any], place: Place) -> Entry:
        kind = "image" if "image" in row else "video"
        path = self.media / text_of(row.get(kind), place.at(kind))
        if not path.is_file():
            raise place.at(kind).fault(row[kind], f"a file in {self.media}")
        if "start" in row or "end" in row:
            missing = [name for name in ("start", "end") if name not in row]
            what = "start and end, both or none" if missing else "a whole video; cut this part out, and leave both away"
            raise place.at("start, end").fault([row.get("start"), row.get("end")], what)
        turns = []
        for k, qa in enumerate(list_of(row.get("QA"), place.at("QA"))):
            at = place.at("QA", k)
            qa = object_of(qa, at)
            asked = [qa.get("i") if k == 0 else None, qa.get("q")]
            question = "\n".join(part.strip() for part in asked if isinstance(part, str) and part.strip())
            turns += [text_of(question, at.at("q")), text_of(qa.get("a"), at.at("a"))]
        if not turns:
            raise place.at("QA").fault(row["QA"], "at least one question with its answer")
        media: dict[str, Any] = {"images" if kind == "image" else "videos": [path]}
        return Entry(f"videochat2-it:{self.source.stem}:{index}", turns, **media)


@dataclass(kw_only=True)
class LLaVAHoundDPO(Conversations):
    """LLaVA-Hound's preferences: JSON Lines of prompt, chosen, rejected and video, a folder of frames.

    By the documentation and its training script, never seen. The chosen answer is learnt; frames are taken to be 1 a
    second, as their times are not published.
    """

    def entry(self, index: int, row: dict[str, Any], place: Place) -> Entry:
        question, chosen, rejected = (text_of(row.get(key), place.at(key)) for key in ("prompt", "chosen", "rejected"))
        if chosen == rejected:
            raise place.at("rejected").fault(rejected, "another answer than the chosen one")
        path = self.media / text_of(row.get("video"), place.at("video"))
        video: Path | FrameList = path
        if path.is_dir():
            frames = sorted(file for file in path.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
            if not frames:
                raise tpo.MediaError(f"{path}: holds no frame")
            video = FrameList.at_rate(row["video"], frames, HOUND_FPS)
        elif not path.is_file():
            raise place.at("video").fault(given(row["video"]), f"a folder of frames, or a video, in {self.media}")
        turns = [question.replace("<video>", "").replace("<image>", "").strip(), chosen]
        return Entry(f"llava-hound-dpo:{row.get('id', index)}", turns, videos=[video])
