"""Video clips: some frames of a video, one, or all of them. Times are seconds from a video's first frame.

T frames of a clip, H height, W width in pixels. A frame is given as a player shows it: turned and mirrored as its
display matrix says, in square pixels. Both fields of an interlaced one stay woven. The file's video stream is the one
that is marked as default, else the first, and never a cover picture. All backends, and all who ask, get the same frames
at the same times (`tpo_plugin.data.media.index`). Where packets were lost from a transport stream, it is refused if the
decoder notices; a frame whose time stamp is wrong in the file is given at that time.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tpo_plugin.config import Config, Count, Positive
from tpo_plugin.data.media.backends import ROUNDING_S, Backend, FrameList, PyAV, Reader, use_reader
from tpo_plugin.data.media.files import check_pixels, reading
from tpo_plugin.data.media.index import Misread, index_by_decoding, index_of
from tpo_plugin.data.packed import Packed
from tpo_plugin.data.sampling import Sampling, sample_indices
from tpo_plugin.errors import MediaError


@dataclass(kw_only=True, frozen=True)
class VideoOptions(Config):
    """How clips are read."""

    num_frames: Count = 16
    """Frames of a clip; for sampling "fps" the most, above which they are thinned out evenly."""
    sampling: Sampling = "uniform"
    """"uniform", "middle" or "fps"; see `tpo_plugin.data.sampling`."""
    fps: Positive = 1.0
    """Frames a second, for sampling "fps"."""
    backend: Backend = "auto"
    """"decord", "pyav" or "torchcodec". "auto" is PyAV, which reads every file; the others refuse those that they may
    read wrongly."""
    max_pixels: Count = 2**28
    """Most pixels of all frames of a clip together, frames x width x height; a larger clip is not read. 2^28 are 128
    frames of 1920 x 1080, or 768 MiB."""


@dataclass(frozen=True)
class VideoClip:
    """Sampled frames of a video."""

    frames: np.ndarray
    """uint8 RGB [T, H, W, 3]."""
    times_s: np.ndarray
    """When each frame is first shown, float64 [T], from the file's own time stamps."""
    duration_s: float
    """Length of the whole video."""

    @property
    def height(self) -> int:
        return self.frames.shape[1]

    @property
    def width(self) -> int:
        return self.frames.shape[2]


def read_video(path: str | Path | Packed, options: VideoOptions | None = None) -> VideoClip:
    """Samples a clip of a video file, or of a list of image files with their durations (.ffconcat).

    Raises `MediaError` for a file that cannot be read, `TPOError` for a backend that is missing.
    """
    options = options or VideoOptions()

    def sample(reader: Reader) -> VideoClip:
        indices = sample_indices(reader.times_s, reader.duration_s, options.sampling, options.num_frames, options.fps)
        return VideoClip(_clip(reader, indices, options.max_pixels), reader.times_s[indices], reader.duration_s)

    return use_reader(video_file(path), options.backend, sample)


def read_frame(path: str | Path | Packed, time_s: float, backend: Backend = "auto") -> Image.Image:
    """The frame that is shown at a time. Raises `MediaError`, also where the video is shorter."""
    return Image.fromarray(read_frames(path, [time_s], backend)[0])


def read_frames(path: str | Path | Packed, times_s: Sequence[float], backend: Backend = "auto") -> np.ndarray:
    """The frames that are shown at ascending times, uint8 RGB [T, H, W, 3].

    A time may be rounded to milliseconds. Raises `MediaError`, also where the video is shorter.
    """

    def pick(reader: Reader) -> np.ndarray:
        return _clip(reader, [shown_at(reader, time_s) for time_s in times_s], VideoOptions().max_pixels)

    return use_reader(video_file(path), backend, pick)


def stream_video(path: str | Path, start_s: float = 0.0) -> Iterator[tuple[float, np.ndarray]]:
    """Every frame from the one shown at `start_s` on: its time in seconds and its pixels, uint8 RGB [H, W, 3].

    Frames are decoded one after another by PyAV, so that a long video takes no more memory than a short one. Raises
    `MediaError` where the file cannot be read, ends before `start_s`, or changes its frame size.
    """
    if str(path).endswith(".ffconcat"):
        with reading(path, "a list of frames"):
            frames = FrameList(str(path))
            yield from _streamed(frames, shown_at(frames, start_s))
        return
    given_s = -1.0
    with reading(path, "a video by pyav"):
        index = index_of(str(path))
        while True:
            with contextlib.closing(PyAV(str(path), index)) as reader:
                first = shown_at(reader, start_s) if given_s < 0 else bisect_right(reader.times_s, given_s + ROUNDING_S)
                try:
                    for given_s, frame in _streamed(reader, first):
                        yield given_s, frame
                    return
                except Misread:
                    if not index.keys:
                        raise
                    index = index_by_decoding(str(path))


def video_file(path: str | Path | Packed) -> Path:
    """The path of a video; one that lies in a shard is written into the cache. Raises `MediaError`."""
    if not isinstance(path, Packed):
        return Path(path)
    with reading(path, "a video"):
        return path.file()


def listed_files(path: str | Path) -> list[Path]:
    """The image files that a list of frames (.ffconcat) names. Raises `MediaError`."""
    with reading(path, "a list of frames"):
        return [Path(file) for file in FrameList(str(path)).files]


def _streamed(reader: Reader, first: int) -> Iterator[tuple[float, np.ndarray]]:
    shape: tuple[int, ...] | None = None
    indices = range(first, len(reader.times_s))
    for time_s, frame in zip(reader.times_s[first:].tolist(), reader.frames(indices), strict=True):
        _check_shape(shape or frame.shape, frame.shape, time_s)
        shape = frame.shape
        yield time_s, frame


def _clip(reader: Reader, indices: Sequence[int], most: int) -> np.ndarray:
    """The frames of `indices`, which ascend, [T, H, W, 3]."""
    width, height = reader.size
    cure = "take fewer frames, or raise max_pixels (data.video.max_pixels)"
    check_pixels(f"a clip of {len(indices)} frames", width, height, most, cure, number=len(indices))
    clip = np.empty(0)
    for number, frame in enumerate(reader.frames(indices)):
        if not number:
            clip = np.empty((len(indices), *frame.shape), np.uint8)
        _check_shape(clip.shape[1:], frame.shape, reader.times_s[indices[number]])
        clip[number] = frame
    return clip


def _check_shape(expected: tuple[int, ...], found: tuple[int, ...], time_s: float) -> None:
    if expected != found:
        raise MediaError(
            f"its frames have different sizes: that at {time_s:.3f} s is {found[1]} x {found[0]}, those before are "
            f"{expected[1]} x {expected[0]}; expected one size in the whole video"
        )


def shown_at(reader: Reader, time_s: float) -> int:
    """Index of the frame that is shown at a time. Raises `MediaError` for a time behind the end."""
    if not 0 <= time_s <= reader.duration_s + ROUNDING_S:
        raise MediaError(f"has no frame at {time_s} s; it lasts {reader.duration_s:.3f} s")
    return bisect_right(reader.times_s, time_s + ROUNDING_S) - 1
