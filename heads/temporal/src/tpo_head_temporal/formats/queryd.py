"""QuerYD: audio descriptions of videos with their times, in two pickles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tpo_head_temporal.formats.moments import Moment, Moments, list_of, object_of, span_of, text_of
from tpo_plugin.convert import Place, Report, lines, read_pickle


@dataclass(kw_only=True)
class QuerYD(Moments):
    """QuerYD: raw_captions_combined_filtered-v2.pkl, with the spans in times_captions_combined_filtered-v2.pkl.

    By the documentation and VideoMind's loader, never seen. Both are keyed by video-ID, with a caption (its words) and
    a span for each; the pickles may hold plain values alone.
    """

    times: Annotated[Path, typer.Option(help="times_captions_combined_filtered-v2.pkl.")]
    only: Annotated[Path | None, typer.Option(help="List of videos, one a line: train_list.txt.")] = None

    def moments(self, report: Report) -> Iterator[Moment]:
        root, times_root = Place(str(self.source)), Place(str(self.times))
        captions = object_of(read_pickle(self.source), root, "an object of videos")
        times = object_of(read_pickle(self.times), times_root, "an object of videos")
        names = [line.strip() for _, line in lines(self.only)] if self.only is not None else list(captions)
        for name in names:
            place, at = root.at(name), times_root.at(name)
            with report.faults():
                queries, spans = list_of(captions.get(name), place), list_of(times.get(name), at)
                if len(queries) != len(spans):
                    raise at.fault(f"of length {len(spans)}", f"one span for each of the {len(queries)} captions")
                for k, (query, span) in enumerate(zip(queries, spans, strict=True)):
                    with report.faults():
                        moment = span_of(span, at.at(k))
                        video = str(name).removeprefix("video-")
                        yield Moment(f"queryd:{name}_{k}", video, _words(query, place.at(k)), (moment,), at.at(k))


def _words(caption: Any, place: Place) -> str:
    """A caption, which may be a text or the list of its words."""
    if isinstance(caption, (list, tuple)) and all(isinstance(word, str) for word in caption):
        caption = " ".join(caption)
    return text_of(caption, place)
