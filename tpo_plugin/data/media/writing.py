"""Videos written as files that every browser and player shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tpo_plugin.errors import TPOError

_TICKS = 90_000
"""Of a second: the clock of MPEG video, in which common frame rates are whole numbers."""


def write_video(path: Path, frames: Iterable[tuple[float, np.ndarray]], end_s: float | None = None) -> Path:
    """Encodes (second, frame [H, W, 3]) pairs, in their order, as an MP4 with H.264, and returns its path.

    The last frame is shown until `end_s`, by default as long as the one before it. A width or height that is odd, which
    the codec cannot hold, loses its last column or row. Raises `TPOError` for frames of different sizes, times that do
    not ascend, or no frame; then no file is left.
    """
    import av

    unfinished = path.with_name(f".{path.stem}.unfinished.mp4")
    size: tuple[int, ...] | None = None
    try:
        with av.open(str(unfinished), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", options={"crf": "18", "preset": "veryfast"})
            stream.pix_fmt = "yuv420p"
            stream.codec_context.max_b_frames = 0  # of a file whose last packet is not its last frame, the end is lost
            stream.codec_context.time_base = Fraction(1, _TICKS)
            durations: dict[int, int] = {}
            for number, (start, end, pixels) in enumerate(_with_ends(frames, end_s)):
                size = size or pixels.shape
                if pixels.shape != size:
                    raise TPOError(
                        f"{path}: frame {number} is of shape {list(pixels.shape)}, those before {list(size)}"
                    )
                height, width = (length // 2 * 2 for length in size[:2])
                if not number:
                    stream.height, stream.width = height, width
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
                frame.pts, frame.time_base = start, Fraction(1, _TICKS)
                durations[start] = end - start
                _mux(container, stream.encode(frame), durations)
            if size is None:
                raise TPOError(f"{path}: no frame was given to encode")
            _mux(container, stream.encode(), durations)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _mux(container: Any, packets: Iterable[Any], durations: dict[int, int]) -> None:
    for packet in packets:  # the encoder knows a frame rate alone
        packet.duration = durations.pop(packet.pts)
        container.mux(packet)


def _with_ends(
    frames: Iterable[tuple[float, np.ndarray]], end_s: float | None
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Each frame with its start and end in ticks."""
    held: tuple[int, np.ndarray] | None = None
    duration = _TICKS // 25
    for second, pixels in frames:
        start = round(second * _TICKS)
        if held is not None:
            duration = start - held[0]
            if duration <= 0:
                raise TPOError(
                    f"a frame at {second} s comes behind one at {held[0] / _TICKS} s; expected ascending times"
                )
            yield held[0], start, held[1]
        held = start, pixels
    if held is not None:
        end = held[0] + duration if end_s is None else max(held[0] + 1, round(end_s * _TICKS))
        yield held[0], end, held[1]
