"""Spans of records. N = task tokens in the batch. No torch until tensors are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import tpo_plugin as tpo
from tpo_head_temporal.config import TemporalConfig
from tpo_plugin.checks import is_list, is_number

if TYPE_CHECKING:
    from PIL.Image import Image

    from tpo_head_temporal.encoder import Reader


class TemporalCodec(tpo.TaskCodec):
    """`spans`: [[start, end], ...] in seconds; optional `saliency`, 0 to 12 for each clip, and `clip_s`.

    `tpo convert` also writes what a data set says: `query`, the question in its words, which
    `tpo cache-features` reads, and `duration`, the seconds of the video. The head reads neither.
    """

    fields = ("spans", "saliency", "clip_s", "query", "duration")
    config: TemporalConfig

    @cached_property
    def reader(self) -> Reader | None:
        """What the CLIP takes of frames and words, for features "clip"."""
        if self.config.clip is None or self.config.features != "clip":
            return None
        from tpo_head_temporal.encoder import Reader

        return Reader(self.config.clip)

    def check_task(self, task: dict[str, Any]) -> None:
        spans = task.get("spans")
        if not is_list(spans) or not spans:
            raise ValueError(f"spans is {spans!r}; expected a list of at least one [start, end] in seconds")
        if len(spans) > self.config.num_queries:
            raise ValueError(f"spans has {len(spans)} moments; expected at most num_queries={self.config.num_queries}")
        for i, span in enumerate(spans):
            if not is_list(span) or len(span) != 2 or not all(map(is_number, span)):
                raise ValueError(f"spans[{i}] is {span!r}; expected two numbers [start, end] in seconds")
            if not 0 <= span[0] < span[1]:
                raise ValueError(f"spans[{i}] is {span!r}; expected 0 <= start < end, in seconds")
        saliency = task.get("saliency")
        if saliency is not None:
            if not is_list(saliency) or not saliency:
                raise ValueError(f"saliency is {saliency!r}; expected a number for each clip of the video")
            for i, value in enumerate(saliency):
                if not (is_number(value) and 0 <= value <= 12):
                    raise ValueError(
                        f"saliency[{i}] is {value!r}; expected 0 (not relevant) to 12, the sum of three marks of 0 to 4"
                    )
        clip_s = task.get("clip_s")
        if clip_s is not None and not (is_number(clip_s) and clip_s > 0):
            raise ValueError(f"clip_s is {clip_s!r}; expected the seconds that each value of saliency covers")

    def check_sample(self, tasks: list[dict[str, Any]], sample: tpo.Sample) -> None:
        """Raises `MediaError` for tasks that do not fit their video, features, or the words that the CLIP takes."""
        from tpo_head_temporal.inputs import check_sample

        check_sample(self.config, self.reader, tasks, sample)

    def draw_tasks(self, tasks: list[dict[str, Any]], given: list[dict[str, Any]], sample: tpo.Sample) -> list[Image]:
        """The video as a timeline with the spans of each task, and its saliency."""
        from tpo_head_temporal.timeline import render_timeline

        return [render_timeline(sample.videos[0], None, task) for task in tasks]

    def collate_targets(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        """As `TemporalHead.loss` takes them."""
        import torch

        lengths = [task.get("clip_s", math.nan) for task in tasks]
        return {
            "spans_s": [torch.tensor(task["spans"], dtype=torch.float32) for task in tasks],
            "saliency": [torch.tensor(task.get("saliency", []), dtype=torch.float32) for task in tasks],
            "clip_s": torch.tensor(lengths, dtype=torch.float32),
        }

    def collate_inputs(
        self, tasks: list[dict[str, Any]], given: list[dict[str, Any]], samples: Sequence[tpo.Sample] = ()
    ) -> dict[str, Any]:
        """When the clips of each sample are, and their features where they come from files: see `inputs.collate`."""
        from tpo_head_temporal.inputs import collate

        return collate(self.config, self.reader, tasks, samples)
