"""Videos as browsers play them."""

from __future__ import annotations

import os
from pathlib import Path

import av

from tpo_plugin.data import stream_video, write_video

_CONTAINERS = ("mp4", "webm")
_CODECS, _PIXELS = {"h264", "vp8", "vp9", "av1"}, {"yuv420p", "yuvj420p"}


def playable(file: Path, duration_s: float) -> Path:
    """`shown.mp4` or `shown.webm` beside a video: the same file where browsers play it, else one with the same frames
    at the same times. Raises `MediaError`.
    """
    with av.open(str(file)) as container:
        context = container.streams.video[0].codec_context
        known = context.name.removeprefix("lib").partition("-")[0] in _CODECS and context.pix_fmt in _PIXELS
        names = container.format.name.split(",")
    kind = next((name for name in _CONTAINERS if name in names), None)
    if not known or kind is None:
        return write_video(file.with_name("shown.mp4"), stream_video(file), duration_s)
    shown = file.with_name(f"shown.{kind}")
    os.link(file, shown)
    return shown
