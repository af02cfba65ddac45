"""What decodes the frames that a `FrameIndex` names. T frames, H height, W width in pixels."""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from packaging.version import Version

from tpo_plugin.data.media.files import MAX_PIXELS, check_pixels, reading
from tpo_plugin.data.media.index import FrameIndex, Misread, decoded, index_by_decoding, index_of, opened
from tpo_plugin.data.media.pictures import read_image
from tpo_plugin.errors import MediaError, TPOError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

BACKENDS = {"decord": "decord", "pyav": "av", "torchcodec": "torchcodec"}
"""Name of a video reader and its package."""

Backend = Literal["auto", "decord", "pyav", "torchcodec"]

ROUNDING_S = 5e-4
"""A time may be rounded to milliseconds."""
_NEARLY = 0.02
"""Pixels this near to squares are left as they are."""


class Reader:
    """A video opened by one backend."""

    times_s: np.ndarray
    """Of every frame, float64, ascending from 0."""
    duration_s: float
    size: tuple[int, int]
    """Width and height of a frame, before it is turned."""

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """uint8 RGB [H, W, 3] for each of `indices`, which ascend and may repeat."""
        raise NotImplementedError(f"{type(self).__name__} must define frames")

    def close(self) -> None:
        """Lets go of the file."""


class PyAV(Reader):
    """Seeks to the key frame before a frame, and believes nothing: what comes must be what the index says.

    Where it is not, it seeks further back, and at last decodes from the start.
    """

    def __init__(self, path: str, index: FrameIndex) -> None:
        self._path, self._index = path, index
        self.times_s, self.duration_s = index.times_s, index.duration_s
        self._places = {start: place for place, start in enumerate(index.starts)}
        self._file = contextlib.ExitStack()
        self._at_start = False
        self._open()
        self._upright = Upright(self._stream)
        codec = self._stream.codec_context
        self.size = square_size(codec.width, codec.height, self._upright.aspect)

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        at = -1
        coming: Iterator[tuple[int, VideoFrame]] = iter(())
        shown: np.ndarray | None = None
        for index in indices:
            if shown is None or at != index:
                if at < 0 or self._place_of(self._key_before(index)) > at:
                    coming = self._from(index)
                at, frame = next((found for found in coming if found[0] == index), (index, None))
                if frame is None:
                    raise Misread(f"its frame at {self.times_s[index]:.3f} s cannot be decoded")
                shown = self._upright(frame)
            yield shown

    def is_turned(self) -> bool:
        """Whether its first frame is stored otherwise than it is shown."""
        return any(self._upright.matrix(frame) != (1, 0, 0, 1) for _, frame in islice(self._from(0), 1))

    def check_keys(self, indices: Sequence[int]) -> None:
        """Raises `Misread` where what is called a key frame before one of `indices` is none."""
        for key in {self._key_before(index) for index in indices}:
            if next(self._behind(self._index.keys[key]), (-1,))[0] != self._place_of(key):
                raise Misread("lists key frames that are none; read it by pyav")

    def _key_before(self, index: int) -> int:
        """Number of the last key frame up to a frame, -1 where there is none."""
        return bisect_right(self._index.keys, self._index.starts[index]) - 1

    def _place_of(self, key: int) -> int:
        return self._places.get(self._index.keys[key], 0) if key >= 0 else 0

    def _from(self, index: int) -> Iterator[tuple[int, VideoFrame]]:
        """Frames with their indices, one after another, the first at most `index`."""
        import av

        key = self._key_before(index)
        for back in (0, 1, 4):
            if key - back > 0:
                coming = self._behind(self._index.keys[key - back])
                with contextlib.suppress(Misread, av.error.FFmpegError):  # some formats cannot seek
                    first = next(coming, None)
                    if first is not None and first[0] <= index:
                        return chain([first], coming)
        if not self._at_start:
            self._open()
        self._at_start = False
        return self._checked(decoded(self._container, self._stream), 0)

    def _behind(self, key: int) -> Iterator[tuple[int, VideoFrame]]:
        """Frames with their indices behind a seek, from the first key frame on that the index knows."""
        self._at_start = False
        self._container.seek(key, stream=self._stream)
        keys, frames = {*self._index.keys} & {*self._places}, decoded(self._container, self._stream)
        first = next((frame for frame in frames if frame.pts in keys), None)  # leading ones may lack what they need
        if first is not None:
            yield from self._checked(chain([first], frames), self._places[first.pts or 0])

    def _checked(self, frames: Iterable[VideoFrame], first: int) -> Iterator[tuple[int, VideoFrame]]:
        """Frames with their indices, from `first` on. Raises `Misread` where one has not the time of its index."""
        for place, frame in enumerate(frames, start=first):
            if place >= len(self.times_s) or (self._index.keys and frame.pts != self._index.starts[place]):
                raise Misread("its frames are not those that its time stamps tell")
            yield place, frame

    def _open(self) -> None:
        self._file.close()
        self._container, self._stream = self._file.enter_context(opened(self._path))
        self._at_start = True

    def close(self) -> None:
        self._file.close()


class Decord(Reader):
    """decord seeks without looking where it lands: only files on which that is right are read by it."""

    def __init__(self, path: str, index: FrameIndex) -> None:
        import decord

        self.size = _plain_size(path, index, "decord")
        self._path, self._index = path, index
        decord.logging.set_level(decord.logging.QUIET)
        self._reader = decord.VideoReader(path, num_threads=1)  # workers are the parallelism
        self.times_s, self.duration_s = index.times_s, index.duration_s
        own_s = self._reader.get_frame_timestamp(list(range(len(self._reader))))[:, 0]
        if self._reader.get_key_indices() != [index.starts.index(key) for key in index.keys]:
            raise MediaError("decord takes other frames of it for key frames; read it by pyav")
        if (
            len(own_s) != len(self.times_s) or np.abs(own_s - own_s[0] - self.times_s).max() > ROUNDING_S
        ):  # float32 there
            raise MediaError("decord finds other frames in it; read it by pyav")

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        with contextlib.closing(PyAV(self._path, self._index)) as reader:
            reader.check_keys(indices)
        # decord.bridge.set_bridge, which belongs to the whole process, may have made it another library's tensor
        batch = self._reader.get_batch(list(indices))
        return iter(batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch))


class TorchCodec(Reader):
    """torchcodec says which frame it gives: another than the one that was asked for is refused."""

    def __init__(self, path: str, index: FrameIndex) -> None:
        from torchcodec.decoders import VideoDecoder

        self.size = _plain_size(path, index, "torchcodec")
        self._decoder = VideoDecoder(path, dimension_order="NHWC")
        self._starts_s = [float(start * index.time_base) for start in index.starts]
        self.times_s, self.duration_s = index.times_s, index.duration_s

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        batch = self._decoder.get_frames_at(indices=list(indices))
        for index, frame, second in zip(indices, batch.data, batch.pts_seconds.tolist(), strict=True):
            if abs(second - self._starts_s[index]) > ROUNDING_S:
                raise MediaError(
                    f"torchcodec gives another frame than that at {self.times_s[index]:.3f} s; read it by pyav"
                )
            yield frame.numpy()


class FrameList(Reader):
    """A video whose frames are image files: a list of them, with how long each is shown, as FFmpeg's concat reads it.

    ffconcat version 1.0
    file 'frames/00000.jpg'
    duration 0.041667
    """

    def __init__(self, path: str) -> None:
        self.files: list[str] = []
        durations: list[float] = []
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
            words = shlex.split(line, comments=True)
            if len(words) == 2 and words[0] == "file" and len(self.files) == len(durations):
                self.files.append(os.path.join(os.path.dirname(path), words[1]))
            elif len(words) == 2 and words[0] == "duration" and len(self.files) == len(durations) + 1:
                durations.append(float(words[1]))
            elif words and words != ["ffconcat", "version", "1.0"]:
                raise MediaError(f"line {number} is neither a frame's file '...' nor, behind it, its duration")
        if not durations or len(durations) < len(self.files) or not min(durations) > 0:
            raise MediaError("expected at least one frame, and a duration above 0 s behind each")
        ends_s = np.cumsum(durations).round(6)
        self.times_s = np.concatenate([[0.0], ends_s[:-1]])
        self.duration_s = float(ends_s[-1])

    @cached_property
    def size(self) -> tuple[int, int]:  # type: ignore[override]
        return read_image(self.files[0]).size

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        at, frame = -1, np.empty(0)
        for index in indices:
            if index != at:
                at, frame = index, np.asarray(read_image(self.files[index]))
            yield frame


# -- frames as a player shows them -------------------------------------------------------------------------------------


def aspect_of(stream: VideoStream) -> float:
    """Width of a stream's pixels to their height; 1 where they are square, or nearly, as encoders round."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return 1.0 if abs(aspect - 1) < _NEARLY else aspect


def square_size(width: int, height: int, aspect: float) -> tuple[int, int]:
    """Width and height in square pixels; the side that is short is made longer."""
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


class Upright:
    """Makes of a stream's frames RGB [H, W, 3] of square pixels, turned and mirrored as its display matrix says."""

    def __init__(self, stream: VideoStream) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self.aspect = aspect_of(stream)
        # From 17 on PyAV would start threads for each video, which takes longer than to convert a small one.
        self._threads = {"threads": 1} if Version(av.__version__) >= Version("17") else {}
        self._reformatter = VideoReformatter()
        self._rotation: int | None = None
        self._matrix: tuple[float, ...] = ()

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """Raises `MediaError` for a matrix that does anything else."""
        width, height = square_size(frame.width, frame.height, self.aspect)  # a stream may change its size
        check_pixels("a frame", width, height, MAX_PIXELS, "expected one of at most 8192 x 8192")
        size = {} if self.aspect == 1 else {"width": width, "height": height}
        pixels = self._reformatter.reformat(frame, format="rgb24", **size, **self._threads).to_ndarray()
        across, down_across, across_down, down = self.matrix(frame)
        if abs(across) < 0.01 and abs(down) < 0.01:  # rows become columns
            pixels, across, down = pixels.transpose(1, 0, 2), across_down, down_across
        elif abs(down_across) > 0.01 or abs(across_down) > 0.01:
            raise MediaError(f"is to be turned by {frame.rotation} degrees; expected a multiple of 90")
        return np.ascontiguousarray(pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])

    def matrix(self, frame: VideoFrame) -> tuple[float, ...]:
        """What the display matrix does with (x, y): x * m0 + y * m2, x * m1 + y * m3."""
        # PyAV makes a cycle of a frame and its side data, which lives on for long: of one frame only.
        if self._rotation != frame.rotation:
            found = frame.side_data.get("DISPLAYMATRIX")
            self._rotation, self._matrix = frame.rotation, (1.0, 0.0, 0.0, 1.0)
            if found is not None:
                self._matrix = tuple(np.frombuffer(cast(Any, found), np.int32)[[0, 1, 3, 4]] / 65536)
        return self._matrix


def _plain_size(path: str, index: FrameIndex, backend: str) -> tuple[int, int]:
    """Width and height of a video. Raises `MediaError` where `backend` may give other frames of it, or lying ones."""
    reader = PyAV(path, index)
    try:
        turned = index.plain and reader.is_turned()
    finally:
        reader.close()
    if turned or not index.plain:
        raise MediaError(
            f"{backend} reads only MP4 and Matroska with one upright video stream of square pixels whose groups of "
            "pictures are closed; read it by pyav"
        )
    return reader.size


_READERS: dict[str, Callable[[str, FrameIndex], Reader]] = {"decord": Decord, "pyav": PyAV, "torchcodec": TorchCodec}


def use_reader(path: str | Path, backend: Backend, use: Callable[[Reader], Any]) -> Any:
    """What `use` gives for a reader of the file. Raises `MediaError`, and `TPOError` for a backend that is missing.

    Where decoding shows that the packets' time stamps are wrong, it is asked again, with an index found by decoding.
    """
    if str(path).endswith(".ffconcat"):
        with reading(path, "a list of frames"):
            return use(FrameList(str(path)))
    name = "pyav" if backend == "auto" else backend
    for needed in dict.fromkeys((name, "pyav")):
        _check_installed(needed)
    with reading(path, f"a video by {name}"):
        index = index_of(str(path))
        try:
            return _used(_READERS[name](str(path), index), use)
        except Misread:
            if not index.keys:
                raise
        return _used(_READERS[name](str(path), index_by_decoding(str(path))), use)


def _used(reader: Reader, use: Callable[[Reader], Any]) -> Any:
    try:
        return use(reader)
    finally:
        reader.close()


def _check_installed(name: str) -> None:
    try:
        importlib.import_module(BACKENDS[name])
    except (ImportError, OSError, RuntimeError) as error:  # torchcodec raises RuntimeError without FFmpeg
        reason = str(error).strip().splitlines()[0]
        raise TPOError(f"video backend {name!r} cannot be imported ({reason}): pip install {BACKENDS[name]}") from error
