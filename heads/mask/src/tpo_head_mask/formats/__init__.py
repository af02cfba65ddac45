"""Readers of published formats, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tpo_head_mask.formats.common import Found, FrameList, Sample, Skipped
from tpo_head_mask.formats.folder import image_folder
from tpo_head_mask.formats.tracks import got10k, lasot
from tpo_head_mask.formats.vos import davis, mevis, ref_davis, ref_youtube_vos, sa_v

FORMATS: dict[str, Callable[[Path, str | None], Iterator[Sample]]] = {
    "davis": davis,
    "ref-davis": ref_davis,
    "ref-youtube-vos": ref_youtube_vos,
    "mevis": mevis,
    "sa-v": sa_v,
    "lasot": lasot,
    "got-10k": got10k,
    "folder": image_folder,
}

__all__ = ["FORMATS", "Found", "FrameList", "Sample", "Skipped"]
