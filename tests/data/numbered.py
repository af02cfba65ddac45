"""Clips whose pixels tell the number of each frame, in many containers and codecs.

The number stands in black and white cells, so that no codec blurs it, with three marks in the corners, so that a turned
or mirrored frame is no frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

COLUMNS, ROWS, CELL = 4, 3, 32
NUM_FRAMES = 48
_MARKS = {(0, 0): 255, (0, COLUMNS - 1): 128, (ROWS - 1, 0): 0}
_DIGITS = [(row, column) for row in range(ROWS) for column in range(COLUMNS) if (row, column) not in _MARKS]
CAN_TURN = hasattr(av.video.stream.VideoStream, "set_display_rotation")
"""Whether this PyAV writes display matrices."""
RATES = {"25": Fraction(25), "29.97": Fraction(30000, 1001), "uneven": Fraction(25)}
CONSTANT = ("avi", "mxf", "rm", "ivf", "ogg")
"""Formats whose frames all have one length."""


@dataclass(frozen=True)
class Clip:
    """How a clip is made."""

    container: str
    codec: str
    b_frames: int = 0
    open_gop: bool = False
    cut: int = 0
    """Packets left out at the start: the stream begins between key frames."""
    rate: str = "25"
    turned: int = 0
    """Degrees clockwise by which a player turns it."""
    num: int = NUM_FRAMES
    options: tuple[tuple[str, str], ...] = ()
    """Of the container."""
    extra: str = ""
    """Another thing about it; of some, what is done to the file's bytes, see `_PATCHES`."""

    @property
    def name(self) -> str:
        parts = [self.container, self.codec, f"b{self.b_frames}" + ("open" if self.open_gop else ""), self.rate]
        parts += [f"cut{self.cut}"] * bool(self.cut) + [f"turned{self.turned}"] * bool(self.turned)
        parts += [f"{value}" for _, value in self.options] + [self.extra] * bool(self.extra)
        parts += [f"{self.num}frames"] * (self.num != NUM_FRAMES)
        return "-".join(parts).replace("+", "_").replace(".", "_")

    def starts_s(self) -> np.ndarray:
        """When each frame is shown."""
        if self.rate == "uneven":
            lengths = np.where(np.arange(self.num) % 7 < 4, 0.04, 0.12)
            return np.concatenate([[0], np.cumsum(lengths[:-1])])
        return np.arange(self.num) / float(RATES[self.rate])


def draw_number(number: int, turned: int = 0) -> np.ndarray:
    """A frame uint8 [H, W, 3] that shows a number, lying so that turning it clockwise by `turned` sets it upright."""
    grid = np.zeros((ROWS, COLUMNS), np.uint8)
    for place, value in _MARKS.items():
        grid[place] = value
    for digit, place in enumerate(_DIGITS):
        grid[place] = 255 * (number >> digit & 1)
    picture = np.kron(grid, np.ones((CELL, CELL), np.uint8))
    return np.repeat(np.rot90(picture, turned // 90)[..., None], 3, 2).copy()


def read_number(frame: np.ndarray) -> int:
    """The number that a frame [H, W, 3] shows; -1 where it shows none."""
    height, width = frame.shape[0] // ROWS, frame.shape[1] // COLUMNS
    cells = frame[: height * ROWS, : width * COLUMNS].mean(2).reshape(ROWS, height, COLUMNS, width)
    grid = cells[:, height // 4 : -height // 4, :, width // 4 : -width // 4].mean((1, 3))
    if any(abs(grid[place] - value) > 50 for place, value in _MARKS.items()):
        return -1
    values = [grid[place] for place in _DIGITS]
    if any(60 < value < 195 for value in values):
        return -1
    return sum(1 << digit for digit, value in enumerate(values) if value > 127)


def make(clip: Clip, folder: Path) -> Path:
    """Writes a clip and returns its path."""

    path = folder / f"{clip.name}.{clip.container}"
    rate = RATES[clip.rate]
    with av.open(str(path), "w", format=_FORMATS.get(clip.container), options=dict(clip.options)) as container:
        packets = [_cover(container)] if clip.extra == "cover" else []
        streams = [_add_stream(container, clip, rate)]
        if clip.extra in ("two streams", "second is default"):
            streams.append(_add_stream(container, clip, rate))
            streams[clip.extra == "second is default"].disposition = av.stream.Disposition.default.value
        sound = (
            container.add_stream("aac" if clip.container == "mp4" else "mp2", rate=44100)
            if "sound" in clip.extra
            else None
        )
        if clip.turned:
            streams[0].set_display_rotation(-clip.turned)
        ticks = np.rint(clip.starts_s() * float(rate)).astype(int).tolist()
        for which, stream in enumerate(streams):
            made = []
            for number, tick in enumerate(ticks):
                shown = draw_number(number + 256 * which, clip.turned)
                frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
                frame.pts, frame.time_base = tick + _OFFSETS.get(clip.extra, 0), 1 / rate
                made += stream.encode(frame)
            made += stream.encode() if ticks else []
            packets.append(made[clip.cut :])
        if clip.container == "avi" and clip.cut:  # its muxer puts the first frame at 0, whatever its time is
            for packet in packets[0][::-1]:
                packet.pts, packet.dts = packet.pts - packets[0][0].dts, packet.dts - packets[0][0].dts
        container.start_encoding()
        if sound is not None:
            packets.append(_silence(sound, 1.5))
        for packet in sorted((p for made in packets for p in made), key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    if clip.extra in _PATCHES:
        path.write_bytes(_PATCHES[clip.extra](path.read_bytes()))
    return path


_FORMATS = {"mpg": "mpeg", "ts": "mpegts", "m2ts": "mpegts", "mkv": "matroska", "wmv": "asf"}
"""Name of a muxer by an extension that is none."""

_OFFSETS = {"late": 125, "negative": -6, "clock wraps": int(2**33 / 90_000 * 25) - 12}
"""Ticks at which the first frame is shown."""


def _add_stream(container: Any, clip: Clip, rate: Fraction) -> Any:
    stream = container.add_stream(clip.codec, rate=rate)
    shown = draw_number(0, clip.turned)
    stream.height, stream.width = shown.shape[:2]
    stream.pix_fmt = {"mjpeg": "yuvj420p", "ffv1": "yuv420p", "gif": "rgb8", "prores_ks": "yuv422p10le"}.get(
        clip.codec, "yuv420p"
    )
    codec = stream.codec_context
    codec.time_base = 1 / rate
    codec.gop_size = 12
    if clip.codec not in ("gif", "mjpeg", "ffv1", "prores_ks", "libsvtav1"):
        codec.bit_rate = 4_000_000
    if clip.b_frames and clip.codec not in ("libx264", "libx265"):
        codec.max_b_frames = clip.b_frames
    codec.thread_count = 1
    options = {}
    if clip.codec == "libx264":
        options = {"bf": str(clip.b_frames), "crf": "10", "preset": "veryfast", "sc_threshold": "0"}
        options["x264-params"] = f"open-gop={int(clip.open_gop)}:b-adapt=0"
        if clip.extra == "interlaced":
            options["flags"] = "+ilme+ildct"
        if clip.extra == "refresh":
            options["x264-params"] += ":intra-refresh=1"
    elif clip.codec == "libx265":
        options = {
            "preset": "ultrafast",
            "x265-params": "keyint=12:min-keyint=12:scenecut=0:b-adapt=0:log-level=none:crf=12"
            f":open-gop={int(clip.open_gop)}:bframes={clip.b_frames}",
        }
    elif clip.codec == "libsvtav1":
        options = {"preset": "10", "crf": "5", "svtav1-params": "keyint=12"}
    elif clip.codec in ("libvpx", "libvpx-vp9"):
        options = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}
    elif clip.codec in ("mpeg2video", "mpeg1video"):
        options = {
            "flags": ("" if clip.open_gop else "+cgop") + ("+ilme+ildct" if clip.extra == "interlaced" else ""),
            "sc_threshold": "1000000000",
        }
        options = {k: v for k, v in options.items() if v}
    if clip.extra == "oblong pixels":
        codec.sample_aspect_ratio = Fraction(2)
    stream.options = options
    return stream


def _cover(container: Any) -> list[Any]:

    stream = container.add_stream("mjpeg", rate=1)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
    stream.disposition = av.stream.Disposition.attached_pic.value
    frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 200, np.uint8), format="rgb24")
    frame.pts, frame.time_base = 0, Fraction(1)
    return [*stream.encode(frame), *stream.encode()]


def _silence(stream: Any, seconds: float) -> list[Any]:

    packets = []
    size = stream.codec_context.frame_size or 1024
    for number in range(int(seconds * 44100 / size)):
        kind = stream.codec_context.format.name
        layout = stream.codec_context.layout.name
        frame = av.AudioFrame(format=kind, layout=layout, samples=size)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.pts, frame.sample_rate, frame.time_base = number * size, 44100, Fraction(1, 44100)
        packets += stream.encode(frame)
    return packets + stream.encode()


def _rename(data: bytes, name: bytes) -> bytes:
    """An MP4 one of whose boxes is made void."""
    assert data.count(name) == 1
    return data.replace(name, b"free")


def _set_key(data: bytes) -> bytes:
    """An MP4 whose table of key frames names a frame that is none."""
    at = data.index(b"stss") + 8
    keys = np.frombuffer(data, ">u4", int.from_bytes(data[at : at + 4], "big"), at + 4) + 5
    keys[0] = 1
    return data[: at + 4] + keys.tobytes() + data[at + 4 + keys.nbytes :]


def _start_later(data: bytes) -> bytes:
    """An MP4 whose edit list begins in the middle of a group of pictures."""
    at = data.index(b"elst") + 4
    assert data[at] == 0
    assert int.from_bytes(data[at + 4 : at + 8], "big") == 1
    media_time = int.from_bytes(data[at + 12 : at + 16], "big")
    scale = int.from_bytes(data[(mdhd := data.index(b"mdhd") + 16) : mdhd + 4], "big")
    return data[: at + 12] + (media_time + 17 * scale // 25).to_bytes(4, "big") + data[at + 16 :]


def _twice(data: bytes) -> bytes:
    """Two transport streams, one behind the other: times begin anew."""
    return data + data


_PATCHES = {
    "no key frames listed": lambda data: _rename(data, b"stss"),
    "wrong key frames listed": _set_key,
    "starts later": _start_later,
    "twice": _twice,
    "middle lost": lambda data: data[: len(data) // 3 // 188 * 188] + data[len(data) // 2 // 188 * 188 :],
    "end lost": lambda data: data[: len(data) * 4 // 5],
}
"""What is done to the bytes of a file."""
