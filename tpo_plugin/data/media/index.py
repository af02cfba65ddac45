"""Which frames a video holds and when each is shown: the same list for every backend and everybody who asks.

It is read from the packets of the stream where they tell it, and else found by decoding the stream from its start.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from packaging.version import Version

from tpo_plugin.data.media.files import MAX_PIXELS, check_pixels
from tpo_plugin.errors import MediaError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_STATED = ("mov", "matroska", "flv", "asf")
"""Formats whose header states how long a file is; of others it is an estimate."""
_UNCERTAIN = "mpeg"
"""MPEG program stream: frames that share a packet of it get the time stamp of the one before or behind."""
_STORED = "avi"
"""A format that numbers frames as they are stored: which number is whose, their order tells."""
_NO_PICTURES = ("attached_pic", "timed_thumbnails", "still_image")
"""Video streams that are a cover or the like."""


class Misread(MediaError):
    """What was decoded is not what the index says, or is damaged."""


@dataclass(frozen=True)
class FrameIndex:
    """The frames of a video in the order in which they are shown."""

    starts: tuple[int, ...]
    """When each is first shown, ascending, in units of `time_base`."""
    end: int
    """When the last is no longer shown."""
    time_base: Fraction
    """Seconds."""
    keys: tuple[int, ...] = ()
    """Starts of those that decoding can begin at; none where the frames were found by decoding, which can then begin
    only where the file does."""
    plain: bool = False
    """Whether any decoder reads it alike: one video stream in MP4 or Matroska, whose groups of pictures stand alone."""

    @cached_property
    def times_s(self) -> np.ndarray:
        """From the first frame on, float64 [T]."""
        return (np.array(self.starts, dtype=np.float64) - self.starts[0]) * float(self.time_base)

    @property
    def duration_s(self) -> float:
        """To the end of the last frame."""
        return float((self.end - self.starts[0]) * self.time_base)


@contextlib.contextmanager
def opened(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A file and its video: the stream that is marked as default, else the first, and never a cover picture.

    Raises `MediaError` where there is none, or its frames are larger than any that is read.
    """
    import av

    # Opening already decodes. PyAV before 17.1 crashes with such options where streams show late, as in MPEG.
    limits = {"max_pixels": str(MAX_PIXELS)} if Version(av.__version__) >= Version("17.1") else {}
    with av.open(path, options=limits) as container:
        streams = _videos(container)
        if not streams:
            covers = " but a cover picture" if container.streams.video else ""
            raise MediaError(f"has no video stream{covers}")
        stream = next((s for s in streams if s.disposition & av.stream.Disposition.default), streams[0])
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        stream.codec_context.thread_count = 1  # workers are the parallelism
        cure = "expected a video of at most 8192 x 8192"
        check_pixels("a frame", stream.codec_context.width, stream.codec_context.height, MAX_PIXELS, cure)
        yield container, stream


def _videos(container: InputContainer) -> list[VideoStream]:
    import av

    kinds = [av.stream.Disposition[name] for name in _NO_PICTURES]
    return [stream for stream in container.streams.video if not any(stream.disposition & kind for kind in kinds)]


def index_of(path: str) -> FrameIndex:
    """The frames of a video, by its packets where they can be trusted; found once while a file stays as it is.

    Raises `MediaError`.
    """
    state = os.stat(path)
    return _remembered.get((path, state.st_mtime_ns, state.st_size, state.st_ino))


class _Remembered:
    """The indices of the files asked about last: training reads a file many times."""

    def __init__(self, most_frames: int) -> None:
        self._found: OrderedDict[tuple[Any, ...], FrameIndex] = OrderedDict()
        self._left, self._lock = most_frames, threading.Lock()

    def get(self, file: tuple[Any, ...]) -> FrameIndex:
        with self._lock:
            if file in self._found:
                self._found.move_to_end(file)
                return self._found[file]
        index = index_by_packets(file[0]) or index_by_decoding(file[0])
        with self._lock:
            if file not in self._found:
                self._found[file] = index
                self._left -= len(index.starts)
            while self._left < 0:
                _, oldest = self._found.popitem(last=False)
                self._left += len(oldest.starts)
        return index


_remembered = _Remembered(1_000_000)  # some 40 bytes a frame


def index_by_packets(path: str) -> FrameIndex | None:
    """The frames by the time stamps of their packets, nothing decoded; None where these do not tell.

    They do where every packet has one, no two the same, the first is a key frame, and each group of pictures is shown
    wholly behind the one before it. Raises `MediaError` for a file that ends before it says.
    """
    with opened(path) as (container, stream):
        groups: list[list[tuple[int, int, bool]]] = []
        told, num, end_s = True, 0, -math.inf
        for packet in container.demux():
            start = packet.pts if packet.pts is not None else packet.dts
            if start is None and not packet.size:  # the empty packet that ends a stream
                continue
            if start is not None:
                end_s = max(end_s, float((start + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            num += 1
            if packet.is_keyframe:
                groups.append([])
            told = told and packet.pts is not None and bool(groups)
            if told and packet.pts is not None:
                groups[-1].append((packet.pts, packet.pts + (packet.duration or 0), packet.is_discard))
        _check_whole(container, stream, num, end_s)
        if not num:
            raise MediaError("has no frame")
        names = container.format.name.split(",")
        told = told and _UNCERTAIN not in names
        alone = len(container.streams.video) == 1 and stream.sample_aspect_ratio in (None, 0, 1)
        base = Fraction(stream.time_base or 0)
    if not told or any(min(behind)[0] <= max(before)[0] for before, behind in pairwise(groups)):
        return None
    packets = sorted(packet for group in groups for packet in group)
    shown = [(start, end) for start, end, hidden in packets if not hidden]
    keys = tuple(group[0][0] for group in groups)
    if not shown or len({start for start, *_ in packets}) < len(packets) or packets[0][0] < keys[0]:
        return None
    starts = tuple(start for start, _ in shown)
    closed = all(group[0] == min(group) for group in groups)
    plain = alone and closed and len(shown) == len(packets) and bool({"mov", "matroska"} & set(names))
    end = _end(starts, shown[-1][1] - starts[-1], 0)
    return FrameIndex(starts, end, base, keys, plain)


def _check_whole(container: InputContainer, stream: VideoStream, num: int, end_s: float) -> None:
    import av

    if not {*_STATED} & set(container.format.name.split(",")):
        return
    header_s = (container.duration or 0) / av.time_base
    if num < stream.frames and not _has_whole_boxes(container.name):  # an edit list, too, leaves out frames
        raise MediaError(f"is truncated: its header lists {stream.frames} frames, {num} are there")
    if not stream.frames and end_s < header_s - 1:
        raise MediaError(f"is truncated: its header says {header_s:.1f} s, its data end at {end_s:.1f} s")


def _has_whole_boxes(path: str) -> bool:
    """Whether an MP4 is as long as its outermost boxes say; False for another file."""
    at, size = 0, os.path.getsize(path)
    with open(path, "rb") as file:
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:  # then it stands behind the name
                length = int.from_bytes(head[8:], "big")
            if length < 8:  # 0: to the end of the file
                return length == 0
            at += length
    return at == size


def index_by_decoding(path: str) -> FrameIndex:
    """The frames that decoding from the start gives. Raises `MediaError` where their times do not ascend."""
    with opened(path) as (container, stream):
        base = Fraction(stream.time_base or 0)
        found = [(frame.pts, frame.duration or 0) for frame in decoded(container, stream)]
        per_frame = round(1 / (stream.average_rate * base)) if stream.average_rate and base else 0
        names = container.format.name.split(",")
    if not found:
        raise MediaError("has no frame")
    stamps = _stamps(found, per_frame, names)
    for before, behind in pairwise(stamps):
        if behind <= before:
            first_s, second_s = (float((stamp - stamps[0]) * base) for stamp in (before, behind))
            raise MediaError(
                f"its times do not ascend: a frame at {second_s:.3f} s comes behind one at {first_s:.3f} s; encode it "
                "anew"
            )
    return FrameIndex(tuple(stamps), _end(stamps, found[-1][1], per_frame), base)


def _stamps(found: list[tuple[int | None, int]], per_frame: int, names: list[str]) -> list[int]:
    """When each decoded frame is shown, of its time stamp and how long that is, in a format of these names."""
    known = [stamp for stamp, _ in found if stamp is not None]
    if not known:
        raise MediaError(
            "has no time stamps, so when a frame is shown is not known; put it into a container at its rate, for "
            "example: ffmpeg -r 25 -i FILE -c copy FILE.mp4"
        )
    if _UNCERTAIN in names or len(known) < len(found):
        counted = _counted([stamp for stamp, _ in found], [duration or per_frame for _, duration in found])
        if counted is not None:
            return counted
    if len(known) < len(found):
        raise MediaError("has frames without a time stamp, and their number does not fit the time between the others")
    if _STORED in names and known != sorted(known):
        known.sort()
        if known[-1] - known[0] != (len(known) - 1) * per_frame:
            raise MediaError("is an AVI whose frames are stored in another order than shown, and some are missing")
    return known


def _end(starts: Sequence[int], duration: int, per_frame: int) -> int:
    """When the last frame ends; as long behind its start as the one before it is shown, where the file is silent."""
    if duration <= 0:
        duration = starts[-1] - starts[-2] if len(starts) > 1 else per_frame
    return starts[-1] + duration


def _counted(stamps: list[int | None], durations: list[int]) -> list[int] | None:
    """Each frame as long behind the one before as that is shown; None where that is not what the time stamps say, which
    may be missing, or off by a frame.
    """
    counted = [0, *accumulate(durations[:-1])]
    anchor, shift = next((s, c) for s, c in zip(stamps, counted, strict=True) if s is not None)
    counted = [anchor - shift + count for count in counted]
    off = (abs(s - c) / max(d, 1) for s, c, d in zip(stamps, counted, durations, strict=True) if s is not None)
    return counted if min(durations) > 0 and all(share <= 1.5 for share in off) else None


def decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Each frame from where the container stands, in the order of showing: from the first on that is decoded without
    another, to the last whole one.

    Raises `Misread` where something between these is damaged.
    """
    import av

    whole = begun = damaged = False
    for packet in container.demux(stream):
        if damaged and packet.size:
            raise Misread("is damaged: something in its middle cannot be decoded")
        whole = whole or packet.is_keyframe
        begun = begun or (packet.is_keyframe and packet.is_discard)  # what an edit list hides before the first frame
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            damaged = whole
            continue
        damaged = whole and packet.is_corrupt
        for frame in frames:
            begun = begun or frame.key_frame or frame.pict_type == av.video.frame.PictureType.I
            if begun and not frame.is_corrupt:
                yield frame
            damaged = damaged or (begun and frame.is_corrupt)
