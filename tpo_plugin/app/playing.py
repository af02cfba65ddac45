"""Videos as browsers play them."""

from __future__ import annotations

from pathlib import Path

import av

from tpo_plugin.data import stream_video, write_video

_CONTAINERS, _CODECS, _PIXELS = {"mp4", "webm"}, {"h264", "vp8", "vp9", "av1"}, {"yuv420p", "yuvj420p"}


def playable(file: Path, duration_s: float, folder: Path) -> Path:
    """The video itself where browsers play it; else one with the same frames at the same times, in `folder`."""
    with av.open(str(file)) as container:
        context = container.streams.video[0].codec_context
        known = context.name.removeprefix("lib").partition("-")[0] in _CODECS and context.pix_fmt in _PIXELS
        names = set(container.format.name.split(","))
    if known and names & _CONTAINERS and not _is_rotated(file):
        return file
    return write_video(folder / "shown.mp4", stream_video(file), duration_s)


def _is_rotated(file: Path) -> bool:
    with av.open(str(file)) as container:
        return bool(next(container.decode(video=0)).rotation)
