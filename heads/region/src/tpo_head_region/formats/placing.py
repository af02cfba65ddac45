"""Conversations with boxes: what their formats share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from tpo_head_region.formats.dialogue import Dialogue, DialogueFormat
from tpo_plugin.convert import Picture, Side, picture


@dataclass(kw_only=True)
class BoxDialogueFormat(DialogueFormat):
    """A source of conversations with boxes."""

    boxes_on: Annotated[
        Side | None,
        typer.Option(help="Of pictures that EXIF turns: whether their boxes fit them as stored, or as shown."),
    ] = None

    def shown(self, dialogue: Dialogue, number: int | None = None, stated: tuple[int, int] | None = None) -> Picture:
        """The picture that boxes of a conversation are of: that of a number, or the only one."""
        if number is None and len(dialogue.images) != 1:
            given = f"of length {len(dialogue.images)}"
            raise dialogue.place.at("images").fault(given, "one picture, to know which one the boxes are of")
        return picture(dialogue.images[number or 0], dialogue.place.at("images"), stated, self.boxes_on)
