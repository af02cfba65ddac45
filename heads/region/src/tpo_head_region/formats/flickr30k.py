"""Flickr30k Entities: captions in which phrases are marked, and XML files with the boxes of each chain of phrases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tpo_head_region.formats.common import PictureFormat, expression, referring
from tpo_head_region.formats.voc import CORNERS, number, read_xml, size_of
from tpo_plugin.convert import Boxes, Entry, Picture, Place, Report, lines, picture

_PHRASE = re.compile(r"\[/EN#(\d+)/(\S+) ([^\]]+)\]")
NOT_VISUAL = "0"


@dataclass(kw_only=True)
class Flickr30kEntities(PictureFormat):
    """Flickr30k Entities: Sentences/ID.txt, Annotations/ID.xml; each phrase with the boxes of its chain."""

    source: Annotated[Path, typer.Argument(help="Folder with Annotations and Sentences.")]
    listed: Annotated[Path, typer.Option(help="Ids of the pictures to take: train.txt, val.txt or test.txt.")]

    def entries(self, report: Report) -> Iterator[Entry]:
        boxes = Boxes(report, "xyxy", None, one_based=True)
        ids = [line.strip() for _, line in lines(self.listed)]
        for id in report.track(ids):
            with report.faults():
                xml = Place(str(self.source / "Annotations" / f"{id}.xml"))
                path = self.find(f"{id}.jpg")
                root = read_xml(Path(xml.file))
                shown = picture(path, xml.at("size"), size_of(root, xml), self.boxes_on)
                chains = self._chains(root, xml)
                sentences = self.source / "Sentences" / f"{id}.txt"
                for count, (place, line) in enumerate(lines(sentences)):
                    yield from self._sentence(f"flickr30k:{id}:{count}", line, place, chains, shown, boxes, report)

    def _chains(self, root: object, place: Place) -> dict[str, list[tuple[list[float], Place]] | None]:
        """The boxes of each chain; None where its phrases are a scene, or have no box."""
        chains: dict[str, list[tuple[list[float], Place]] | None] = {}
        for index, item in enumerate(root.findall("object")):  # type: ignore[attr-defined]
            where = place.at("object", index).at("bndbox")
            box = item.find("bndbox")
            for name in item.findall("name"):
                chain = name.text or ""
                if box is not None:
                    values = [number(box, corner, where) for corner in CORNERS]
                    chains[chain] = [*(chains.get(chain) or []), (values, where)]
                elif "1" in (item.findtext("nobndbox"), item.findtext("scene")):
                    chains.setdefault(chain, None)
        return chains

    def _sentence(
        self,
        id: str,
        line: str,
        place: Place,
        chains: dict[str, list[tuple[list[float], Place]] | None],
        shown: Picture,
        boxes: Boxes,
        report: Report,
    ) -> Iterator[Entry]:
        for count, match in enumerate(_PHRASE.finditer(line)):
            with report.faults():
                chain, _, text = match.groups()
                if chain == NOT_VISUAL:
                    report.leave_out("a phrase that is not visual", place)
                    continue
                if chain not in chains:
                    raise place.at(f"phrase {count}").fault(chain, "the id of an object with bndbox, nobndbox or scene")
                marked = chains[chain]
                if marked is None:
                    report.leave_out("a phrase without a box", place)
                    continue
                found = [boxes.read(values, shown, where) for values, where in marked]
                phrase = expression(text, place)
                yield referring(f"{id}:{count}", phrase, found, shown.medium)
