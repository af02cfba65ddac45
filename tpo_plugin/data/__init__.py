"""Records, their media, and the batches made of them.

Names are imported on first use: reading records needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tpo_plugin.extras import needed

if TYPE_CHECKING:
    from tpo_plugin.data.collate import TPOCollator
    from tpo_plugin.data.dataset import RecordDataset, Sample, SkippedRecord, read_sample
    from tpo_plugin.data.format import RecordFormat
    from tpo_plugin.data.media import (
        ImageOptions,
        VideoClip,
        VideoOptions,
        read_frame,
        read_frames,
        read_image,
        read_video,
        stream_video,
        write_video,
    )
    from tpo_plugin.data.records import Record, Records, Turn, parse_record, prompt_record

_MODULES = {
    "format": ("RecordFormat",),
    "records": ("Record", "Records", "Turn", "parse_record", "prompt_record"),
    "media": (
        "ImageOptions",
        "VideoClip",
        "VideoOptions",
        "read_frame",
        "read_frames",
        "read_image",
        "read_video",
        "stream_video",
        "write_video",
    ),
    "dataset": ("RecordDataset", "Sample", "SkippedRecord", "read_sample"),
    "collate": ("TPOCollator",),
}

__all__ = [
    "ImageOptions",
    "Record",
    "RecordDataset",
    "RecordFormat",
    "Records",
    "Sample",
    "SkippedRecord",
    "TPOCollator",
    "Turn",
    "VideoClip",
    "VideoOptions",
    "parse_record",
    "prompt_record",
    "read_frame",
    "read_frames",
    "read_image",
    "read_sample",
    "read_video",
    "stream_video",
    "write_video",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            with needed():
                return getattr(importlib.import_module(f"tpo_plugin.data.{module}"), name)
    raise AttributeError(f"module 'tpo_plugin.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
