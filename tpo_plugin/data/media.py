"""Images and video clips from files. Nothing is kept open: a reader lives within one call, in the process that calls.

T frames of a clip, H height, W width in pixels. Times are seconds from a video's first frame.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import shlex
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from tpo_plugin.config import Config, Count, Positive
from tpo_plugin.data.sampling import Sampling, sample_indices
from tpo_plugin.errors import MediaError, TPOError

BACKENDS = {"decord": "decord", "pyav": "av", "torchcodec": "torchcodec"}
"""Name of a video reader and its package."""

Backend = Literal["auto", "decord", "pyav", "torchcodec"]

_TOLERANCE_S = 1e-3
"""A time may be behind the end by this much: the backends' durations differ by rounding."""


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
    """"decord", "pyav" or "torchcodec". "auto" is decord where it is installed, and PyAV otherwise or for a file that
    decord cannot read (a portrait video of a telephone)."""


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


def read_image(path: str | Path) -> Image.Image:
    """An image file, upright (its EXIF orientation applied), RGB. Raises `MediaError`."""
    with _reading(path, "an image"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's remarks on odd metadata
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")


def read_video(path: str | Path, options: VideoOptions | None = None) -> VideoClip:
    """Samples a clip of a video file, or of a list of image files with their durations (.ffconcat).

    Raises `MediaError` for a file that cannot be read, `TPOError` for a backend that is missing.
    """
    options = options or VideoOptions()

    def sample(reader: _Reader) -> VideoClip:
        indices = sample_indices(reader.times_s, reader.duration_s, options.sampling, options.num_frames, options.fps)
        frames, times_s = reader.frames(indices)
        return VideoClip(frames, times_s, reader.duration_s)

    return _with_reader(path, options.backend, sample)


def read_frame(path: str | Path, time_s: float, backend: Backend = "auto") -> Image.Image:
    """The frame that is shown at a time. Raises `MediaError`, also where the video is shorter."""

    def pick(reader: _Reader) -> Image.Image:
        if not 0 <= time_s <= reader.duration_s + _TOLERANCE_S:
            raise MediaError(f"{path}: has no frame at {time_s} s; it lasts {reader.duration_s:.3f} s")
        return Image.fromarray(reader.frame_at(time_s))

    return _with_reader(path, VideoOptions(backend=backend).backend, pick)


def stream_video(path: str | Path, start_s: float = 0.0) -> Iterator[tuple[float, np.ndarray]]:
    """Every frame from the one shown at `start_s` on: its time in seconds and its pixels, uint8 RGB [H, W, 3].

    Frames are decoded one after another by PyAV, so that a long video takes no more memory than a short one. Raises
    `MediaError` where the file cannot be read, ends before `start_s`, or changes its frame size.
    """
    listed = str(path).endswith(".ffconcat")
    with _reading(path, "a list of frames" if listed else "a video by pyav"):
        reader = _FrameList(str(path)) if listed else _PyAV(str(path))
        try:
            if not 0 <= start_s <= reader.duration_s + _TOLERANCE_S:
                raise MediaError(f"has no frame at {start_s} s; it lasts {reader.duration_s:.3f} s")
            first = bisect_right(reader.times_s, start_s + 1e-6) - 1
            shape: tuple[int, ...] | None = None
            for time_s, frame in zip(reader.times_s[first:].tolist(), reader.stream(first), strict=True):
                if shape is not None and shape != frame.shape:
                    raise MediaError(
                        f"its frame at {time_s:.3f} s is {frame.shape[1]} x {frame.shape[0]}, those before are "
                        f"{shape[1]} x {shape[0]}; expected one size in the whole video"
                    )
                shape = frame.shape
                yield time_s, frame
        finally:
            reader.close()


def listed_files(path: str | Path) -> list[Path]:
    """The image files that a list of frames (.ffconcat) names. Raises `MediaError`."""
    with _reading(path, "a list of frames"):
        return [Path(file) for file in _FrameList(str(path))._files]


# -- readers -----------------------------------------------------------------------------------------------------------


class _Reader:
    """A video opened by one backend."""

    times_s: np.ndarray
    """Of every frame, float64, ascending from 0."""
    duration_s: float

    def frames(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [T, H, W, 3] and their times [T]; `indices` ascend and may repeat."""
        raise NotImplementedError

    def frame_at(self, time_s: float) -> np.ndarray:
        return self.frames([bisect_right(self.times_s, time_s + 1e-6) - 1])[0][0]

    def stream(self, first: int) -> Iterator[np.ndarray]:
        """Each frame [H, W, 3] from index `first` on."""
        return (self.frames([index])[0][0] for index in range(first, len(self.times_s)))

    def close(self) -> None:
        """Lets go of the file."""


class _Decord(_Reader):
    def __init__(self, path: str) -> None:
        import av
        import decord

        with av.open(path) as container:  # says what is wrong with a file, where decord writes to stderr
            header_s = (container.duration or 0) / av.time_base
        decord.logging.set_level(decord.logging.QUIET)
        self._reader = decord.VideoReader(path, num_threads=1)  # workers are the parallelism
        if not len(self._reader):
            raise MediaError("has no frame")
        # float32 there: to six digits they are again what the file says
        start_end = self._reader.get_frame_timestamp(list(range(len(self._reader)))).astype(np.float64).round(6)
        self.times_s = start_end[:, 0] - start_end[0, 0]
        self.duration_s = float(start_end[-1, 1] - start_end[0, 0])
        if self.duration_s < header_s - 1:  # longer sound, or a truncated file, which decord takes for a shorter one
            _PyAV(path).close()

    def frames(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        batch = self._reader.get_batch(indices)
        # decord.bridge.set_bridge, which belongs to the whole process, may have made it another library's tensor
        frames = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)
        return frames, self.times_s[indices]


class _PyAV(_Reader):
    def __init__(self, path: str) -> None:
        import av

        self._container = av.open(path)
        if not self._container.streams.video:
            raise MediaError("has no video stream")
        self._stream = self._container.streams.video[0]
        packets = []
        end_s = 0.0
        for packet in self._container.demux():
            start = packet.pts if packet.pts is not None else packet.dts
            if start is None:  # the empty packet that ends a stream
                continue
            end = start + (packet.duration or 0)
            end_s = max(end_s, float(end * packet.time_base))
            if packet.stream_index == self._stream.index:
                packets.append((start, end, packet.is_keyframe, packet.is_discard))
        header_s = (self._container.duration or 0) / av.time_base
        if len(packets) < self._stream.frames:
            raise MediaError(f"is truncated: its header lists {self._stream.frames} frames, {len(packets)} are there")
        if not self._stream.frames and end_s < header_s - 1:
            raise MediaError(f"is truncated: its header says {header_s:.1f} s, its data end at {end_s:.1f} s")
        shown = sorted({start: end for start, end, _, hidden in packets if not hidden}.items())
        if not shown:
            raise MediaError("has no frame")
        self._starts = [start for start, _ in shown]
        self._keys = sorted(start for start, _, is_key, _ in packets if is_key)
        seconds = float(self._stream.time_base or 0)
        self.times_s = (np.array(self._starts, dtype=np.float64) - self._starts[0]) * seconds
        end = shown[-1][1]
        if end == self._starts[-1] and len(shown) > 1:  # a file that does not say how long its last frame is shown
            end += self._starts[-1] - self._starts[-2]
        self.duration_s = (end - self._starts[0]) * seconds

    def frames(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        wanted = [self._starts[index] for index in indices]
        decoded = dict(self._decode(sorted(set(wanted))))
        return np.stack([decoded[start] for start in wanted]), self.times_s[indices]

    def stream(self, first: int) -> Iterator[np.ndarray]:
        return (frame for _, frame in self._decode(self._starts[first:]))

    def _decode(self, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Each wanted start and its frame; seeks where a key frame lies between the last decoded frame and the next."""
        frames: Iterator[Any] = iter(())
        position: int | None = None
        for start in wanted:
            before = bisect_right(self._keys, start) - 1
            key = self._keys[before] if before >= 0 else self._starts[0]
            if position is None or key > position:
                self._container.seek(key, stream=self._stream)
                frames = self._container.decode(self._stream)
            for frame in frames:
                position = frame.pts if frame.pts is not None else frame.dts
                if position == start:
                    # Its display matrix says by how much to turn it anticlockwise.
                    turned = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                    yield start, turned
                    break
            else:
                seconds = float((start - self._starts[0]) * (self._stream.time_base or 0))
                raise MediaError(f"its frame at {seconds:.3f} s cannot be decoded")

    def close(self) -> None:
        self._container.close()


class _TorchCodec(_Reader):
    """torchcodec lists no times without decoding: sampling "fps" takes the frame rate as constant here. Times that it
    returns are the file's; a duration can be too long by a frame where frames have different lengths."""

    def __init__(self, path: str) -> None:
        from torchcodec.decoders import VideoDecoder

        self._decoder = VideoDecoder(path, dimension_order="NHWC")
        meta = self._decoder.metadata
        if not meta.num_frames or not meta.average_fps:
            raise MediaError("has no frame")
        self._begin = meta.begin_stream_seconds or 0.0
        self.times_s = np.arange(meta.num_frames) / meta.average_fps
        self.duration_s = meta.end_stream_seconds - self._begin

    def frames(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        batch = self._decoder.get_frames_at(indices=indices)
        return batch.data.numpy(), batch.pts_seconds.double().numpy() - self._begin

    def frame_at(self, time_s: float) -> np.ndarray:
        # The end itself is not part of the video; it means the last frame.
        last = np.nextafter(self._begin + self.duration_s, 0)
        # Not get_frame_played_at, which gives the next frame where a frame is shown longer than its packet says.
        return self._decoder.get_frames_played_at([min(self._begin + time_s, last)]).data[0].numpy()


class _FrameList(_Reader):
    """A video whose frames are image files: a list of them, with how long each is shown, as FFmpeg's concat reads it.

    ffconcat version 1.0
    file 'frames/00000.jpg'
    duration 0.041667
    """

    def __init__(self, path: str) -> None:
        self._files: list[str] = []
        durations: list[float] = []
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
            words = shlex.split(line, comments=True)
            if len(words) == 2 and words[0] == "file" and len(self._files) == len(durations):
                self._files.append(os.path.join(os.path.dirname(path), words[1]))
            elif len(words) == 2 and words[0] == "duration" and len(self._files) == len(durations) + 1:
                durations.append(float(words[1]))
            elif words and words != ["ffconcat", "version", "1.0"]:
                raise MediaError(f"line {number} is neither a frame's file '...' nor, behind it, its duration")
        if not durations or len(durations) < len(self._files) or not min(durations) > 0:
            raise MediaError("expected at least one frame, and a duration above 0 s behind each")
        ends_s = np.cumsum(durations).round(6)
        self.times_s = np.concatenate([[0.0], ends_s[:-1]])
        self.duration_s = float(ends_s[-1])

    def frames(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        frames = {index: np.asarray(read_image(self._files[index])) for index in sorted(set(indices))}
        sizes = {frame.shape[1::-1] for frame in frames.values()}
        if len(sizes) > 1:
            raise MediaError(f"its frames have different sizes: {', '.join(f'{w} x {h}' for w, h in sorted(sizes))}")
        return np.stack([frames[index] for index in indices]), self.times_s[indices]


_READERS: dict[str, Callable[[str], _Reader]] = {"decord": _Decord, "pyav": _PyAV, "torchcodec": _TorchCodec}


def _with_reader(path: str | Path, backend: str, use: Callable[[_Reader], Any]) -> Any:
    if str(path).endswith(".ffconcat"):
        with _reading(path, "a list of frames"):
            return use(_FrameList(str(path)))
    choices = [backend]
    if backend == "auto":
        choices = [name for name in ("decord", "pyav") if importlib.util.find_spec(BACKENDS[name])]
    if not choices:
        raise TPOError("no video reader is installed: pip install av (or decord)")
    for name in choices:
        try:
            importlib.import_module(BACKENDS[name])
        except (ImportError, OSError, RuntimeError) as error:  # torchcodec raises RuntimeError without FFmpeg
            reason = str(error).strip().splitlines()[0]
            raise TPOError(
                f"video backend {name!r} cannot be imported ({reason}): pip install {BACKENDS[name]}"
            ) from error
        try:
            with _reading(path, f"a video by {name}"):
                reader = _READERS[name](str(path))
                try:
                    return use(reader)
                finally:
                    reader.close()
        except MediaError:
            if name == choices[-1]:
                raise
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _reading(path: str | Path, what: str) -> Iterator[None]:
    """Turns whatever a library raises into a `MediaError` with the file and the reason."""
    if not os.path.isfile(path):
        raise MediaError(f"{path}: no such file")
    if not os.path.getsize(path):
        raise MediaError(f"{path}: cannot be read as {what}: the file is empty")
    try:
        yield
    except MediaError as error:
        known = str(error)
        raise (error if known.startswith(str(path)) else MediaError(f"{path}: {known}")) from error.__cause__
    except Exception as error:
        # decord puts its source position before a reason, and a stack trace behind it
        reason = re.sub(r"^\[[\d:]+\] \S+: ", "", str(error).strip()).split("\n")[0] or type(error).__name__
        raise MediaError(f"{path}: cannot be read as {what}: {reason}") from error
