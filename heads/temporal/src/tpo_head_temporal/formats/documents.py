"""Layouts of one JSON document: ActivityNet-Captions, TACoS, TimeLens-Bench, DiDeMo, HiREST, Ego4D NLQ, YouCook2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from tpo_head_temporal.formats.moments import (
    Moment,
    Moments,
    given,
    list_of,
    number_of,
    object_of,
    span_of,
    text_of,
)
from tpo_plugin.checks import is_count
from tpo_plugin.convert import Place, Report, read_json

DIDEMO_SEGMENT_S = 5.0
_UNTRIMMED = "the moment is the whole video"


@dataclass(kw_only=True)
class _Videos(Moments):
    """An object of videos, each with spans and texts side by side."""

    spans_key = "timestamps"
    texts_key = "sentences"
    prefix = "activitynet-captions"

    def moments(self, report: Report) -> Iterator[Moment]:
        root = Place(str(self.source))
        videos = object_of(read_json(self.source), root, "an object of videos")
        for video, about in videos.items():
            place = root.at(video)
            with report.faults():
                about = object_of(about, place)
                spans = list_of(about.get(self.spans_key), place.at(self.spans_key))
                texts = list_of(about.get(self.texts_key), place.at(self.texts_key))
                if len(spans) != len(texts):
                    raise place.at(self.texts_key).fault(f"of length {len(texts)}", f"one for each of the {len(spans)}")
                duration_s, unit_s = self.length(about, place)
                for k, (span, text) in enumerate(zip(spans, texts, strict=True)):
                    with report.faults():
                        at = place.at(self.spans_key, k)
                        span_s = span_of(span, at, unit_s)
                        query = text_of(text, place.at(self.texts_key, k))
                        yield Moment(f"{self.prefix}:{video}_{k}", video, query, (span_s,), at, duration_s)

    def length(self, about: dict[str, Any], place: Place) -> tuple[float, float]:
        """Seconds of the video, and of one unit of its spans."""
        return number_of(about.get("duration"), place.at("duration")), 1.0


@dataclass(kw_only=True)
class ActivityNetCaptions(_Videos):
    """ActivityNet-Captions: train.json, val_1.json, val_2.json: {video: duration, timestamps, sentences}.

    Layout seen on the published files. val_1 and val_2 are the same videos by other annotators: never train on one and
    test on the other.
    """


@dataclass(kw_only=True)
class TACoS(_Videos):
    """TACoS: train.json, val.json, test.json: {video: timestamps in frames, sentences, fps, num_frames}.

    Layout seen on the files of 2D-TAN. The other form, JSON Lines in seconds, is that of `qvhighlights`.
    """

    prefix = "tacos"

    def length(self, about: dict[str, Any], place: Place) -> tuple[float, float]:
        fps = number_of(about.get("fps"), place.at("fps"), "frames a second, above 0")
        frames = number_of(about.get("num_frames"), place.at("num_frames"), "a number of frames above 0")
        return frames / fps, 1 / fps


@dataclass(kw_only=True)
class TimeLensBench(_Videos):
    """TimeLens-Bench: {video: duration, spans, queries}, one span for each query.

    Layout as its own loader reads it.
    """

    spans_key, texts_key, prefix = "spans", "queries", "timelens-bench"


@dataclass(kw_only=True)
class DiDeMo(Moments):
    """DiDeMo: train_data.json, a list of annotation_id, video, description, times in segments of 5 seconds.

    Layout seen on the published files. Several annotators chose: the span is that of the one who agrees most with all,
    by the sum of IoUs; of several the first.
    """

    def moments(self, report: Report) -> Iterator[Moment]:
        root = Place(str(self.source))
        for index, about in enumerate(list_of(read_json(self.source), root)):
            with report.faults():
                yield self._moment(index, about, root.at(index))

    def _moment(self, index: int, about: Any, place: Place) -> Moment:
        import numpy as np

        from tpo_head_temporal.span_metrics import span_iou

        about = object_of(about, place)
        num = about.get("num_segments", 6)
        if not is_count(num):
            raise place.at("num_segments").fault(num, "a whole number above 0")
        times = list_of(about.get("times"), place.at("times"))
        for k, pair in enumerate(times):
            at = place.at("times", k)
            if not (isinstance(pair, list) and len(pair) == 2 and all(type(x) is int for x in pair)):
                raise at.fault(pair, "the whole numbers of the first and the last segment")
            if not 0 <= pair[0] <= pair[1] < num:
                raise at.fault(pair, f"segments from 0 to {num - 1}, the last not before the first")
        if not times:
            raise place.at("times").fault(times, "at least one annotator's segments")
        segments = np.array(times, dtype=float) + np.array([0, 1])
        start, end = segments[span_iou(segments[:, None], segments).sum(1).argmax()] * DIDEMO_SEGMENT_S
        video = text_of(about.get("video"), place.at("video"))
        query = text_of(about.get("description"), place.at("description"))
        id = f"didemo:{about.get('annotation_id', index)}"
        return Moment(id, video, query, ((float(start), float(end)),), place)


@dataclass(kw_only=True)
class HiREST(Moments):
    """HiREST: all_data_train.json: {query: {video: relevant, clip, v_duration, bounds, steps}}.

    Layout seen on the published files. Videos that do not belong to their query, and those that fit it as a whole (clip
    is false), are left out and counted. The bounds of the test file are a placeholder, and refused.
    """

    what: Annotated[
        Literal["moments", "steps"], typer.Option(help="The query's moment in a video, or the steps within it.")
    ] = "moments"

    def moments(self, report: Report) -> Iterator[Moment]:
        root = Place(str(self.source))
        for query, videos in object_of(read_json(self.source), root, "an object of queries").items():
            for video, about in object_of(videos, root.at(query), "an object of videos").items():
                place = root.at(query, video)
                with report.faults():
                    if not object_of(about, place).get("relevant"):
                        report.leave_out("the video does not belong to the query", place)
                    elif not about.get("clip"):
                        report.leave_out(_UNTRIMMED, place)
                    else:
                        yield from self._of_video(query, video, about, place, report)

    def _of_video(
        self, query: str, video: str, about: dict[str, Any], place: Place, report: Report
    ) -> Iterator[Moment]:
        duration_s = number_of(about.get("v_duration"), place.at("v_duration"))
        if about.get("bounds") == [0, 1]:
            raise place.at("bounds").fault([0, 1], "a moment; this is the placeholder of the published test file")
        if self.what == "moments":
            span = span_of(about.get("bounds"), place.at("bounds"))
            yield Moment(f"hirest:{video}:{query}", video, text_of(query, place), (span,), place, duration_s)
            return
        for k, step in enumerate(list_of(about.get("steps"), place.at("steps"))):
            with report.faults():
                at = place.at("steps", k)
                heading = text_of(object_of(step, at).get("heading"), at.at("heading"))
                span = span_of(step.get("absolute_bounds"), at.at("absolute_bounds"))
                yield Moment(f"hirest:{video}:{query}:{k}", video, heading, (span,), at, duration_s)


@dataclass(kw_only=True)
class NLQ(Moments):
    """Ego4D NLQ: nlq_train.json: videos, their clips, annotations and language_queries.

    Layout as EGO4D/episodic-memory reads it. The test file has no times and is refused.
    """

    times: Annotated[
        Literal["clip", "video"],
        typer.Option(help="What the files in --videos are: clips, named by clip_uid, or whole videos, by video_uid."),
    ]

    def moments(self, report: Report) -> Iterator[Moment]:
        root = Place(str(self.source))
        document = object_of(read_json(self.source), root)
        for i, video in enumerate(list_of(document.get("videos"), root.at("videos"))):
            for j, clip in enumerate(self._list(video, "clips", root.at("videos", i))):
                place = root.at("videos", i, "clips", j)
                for k, annotation in enumerate(self._list(clip, "annotations", place)):
                    at = place.at("annotations", k)
                    for n, query in enumerate(self._list(annotation, "language_queries", at)):
                        with report.faults():
                            yield self._moment(video, clip, query, at.at("language_queries", n), k, n)

    def _list(self, parent: Any, key: str, place: Place) -> list[Any]:
        return list_of(object_of(parent, place).get(key), place.at(key))

    def _moment(self, video: Any, clip: Any, query: Any, place: Place, k: int, n: int) -> Moment:
        words = text_of(object_of(query, place).get("query"), place.at("query")).removeprefix("Query Text:").strip()
        start, end = f"{self.times}_start_sec", f"{self.times}_end_sec"
        for key in (start, end):
            if query.get(key) is None:
                raise place.at(key).fault(given(None), "seconds; the test file is published without times")
        span = span_of([query[start], query[end]], place.at(f"{start}, {end}"))
        clip_id = text_of(clip.get("clip_uid"), place.at("clip_uid"))
        name = clip_id if self.times == "clip" else text_of(video.get("video_uid"), place.at("video_uid"))
        return Moment(f"nlq:{clip_id}_{k}_{n}", name, words, (span,), place)


@dataclass(kw_only=True)
class YouCook2(Moments):
    """YouCook2: youcookii_annotations_trainval.json: database of subset, duration and annotations.

    Layout as VideoMind's loader and a published sample have it.
    """

    subset: Annotated[Literal["training", "validation"], typer.Option(help="Which videos.")]

    def moments(self, report: Report) -> Iterator[Moment]:
        root = Place(str(self.source))
        database = object_of(object_of(read_json(self.source), root).get("database"), root.at("database"))
        for video, about in database.items():
            place = root.at("database", video)
            with report.faults():
                if object_of(about, place).get("subset") not in ("training", "validation"):
                    raise place.at("subset").fault(given(about.get("subset")), "'training' or 'validation'")
                if about["subset"] != self.subset:
                    continue
                duration_s = number_of(about.get("duration"), place.at("duration"))
                for k, step in enumerate(list_of(about.get("annotations"), place.at("annotations"))):
                    with report.faults():
                        at = place.at("annotations", k)
                        query = text_of(object_of(step, at).get("sentence"), at.at("sentence"))
                        span = span_of(step.get("segment"), at.at("segment"))
                        id = f"youcook2:{video}_{step.get('id', k)}"
                        yield Moment(id, video, query, (span,), at, duration_s)
