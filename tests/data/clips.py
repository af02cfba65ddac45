"""What each backend makes of clips that tell their frame numbers, over containers, codecs, B frames, cuts and rates.

    python -m tests.data.clips

writes all of them into a temporary folder, reads each by every backend, and compares every frame with its number and
its time with the one that it was written for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.numbered import CONSTANT, NUM_FRAMES, Clip, make, read_number


@dataclass
class Result:
    """What a backend made of a clip."""

    compared: int = 0
    wrong: list[str] = field(default_factory=list)
    """Frames that are others than were asked for, or at another time."""
    refused: str = ""
    """Reason, where it was not read."""


def shown_in_order(path: Path, which: int = 0) -> list[tuple[int, float]]:
    """Number and seconds of each whole frame of a stream that PyAV decodes from the start, without any seek."""
    import av

    found: list[tuple[int, float]] = []
    with contextlib.suppress(av.error.FFmpegError), av.open(str(path)) as container:
        covers = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & covers]
        for packet in container.demux(streams[which]):
            with contextlib.suppress(av.error.InvalidDataError):
                found += [(read_number(upright(f)), f.time or 0.0) for f in packet.decode() if not f.is_corrupt]
    while found and found[0][0] < 0:  # decoded without what it depends on
        found.pop(0)
    return found


def upright(frame: Any) -> np.ndarray:
    """A frame of PyAV as its rotation says."""
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def compare(clip: Clip, path: Path, backend: str) -> Result:
    """Reads a clip in every way, and each frame's number and time."""
    from tpo_plugin.data.media import VideoOptions, read_frames, read_video, stream_video
    from tpo_plugin.errors import MediaError

    decoded = shown_in_order(path, _STREAM.get(clip.extra, 0))
    numbers = [number for number, _ in decoded]
    if not numbers or min(numbers) < 0 or numbers != sorted({*numbers}):  # no frame, or damaged ones
        try:
            read_video(path, VideoOptions(num_frames=NUM_FRAMES, backend=backend))
            return Result(wrong=["is read, though what decoding gives is damaged"])
        except MediaError as error:
            return Result(refused=str(error).removeprefix(f"{path}: "))

    starts_s = clip.starts_s()[np.array(numbers) % 256]
    if clip.extra == "middle lost":  # a demuxer may give a frame the time of one that was lost; then the file lies
        starts_s = np.array([time_s for _, time_s in decoded])
    times_s = starts_s - starts_s[0]
    result = Result()

    def check(frame: np.ndarray, place: int, time_s: float) -> None:
        number = read_number(frame)
        result.compared += 1
        if number != numbers[place] or abs(time_s - times_s[place]) > _CLOCK_S.get(clip.container, 1e-3):
            result.wrong.append(f"{number} at {time_s:.4f} s for {numbers[place]} at {times_s[place]:.4f} s")

    try:
        for num in (len(numbers), 7, 2):
            got = read_video(path, VideoOptions(num_frames=max(num, 1), backend=backend))
            places = np.linspace(0, len(numbers) - 1, max(num, 1)).astype(int)
            for frame, time_s, place in zip(got.frames, got.times_s, places, strict=True):
                check(frame, place, time_s)
        some = sorted({0, len(numbers) // 5, len(numbers) // 2, len(numbers) - 2, len(numbers) - 1} - {-1})
        middles_s = (times_s + np.append(times_s[1:], got.duration_s)) / 2
        for place in some:
            (frame,) = read_frames(path, [middles_s[place]], backend)
            check(frame, place, times_s[place])
        for start in some if backend == "pyav" else ():
            streamed = list(stream_video(path, middles_s[start]))
            if len(streamed) != len(numbers) - start:
                result.wrong.append(f"{len(streamed)} frames from number {start} on, of {len(numbers)}")
            for place, (time_s, frame) in zip(range(start, len(numbers)), streamed, strict=False):
                check(frame, place, time_s)
    except MediaError as error:
        result.refused = str(error).removeprefix(f"{path}: ")
    return result


_STREAM = {"second is default": 1}
"""The stream that is to be read."""
_CLOCK_S = {"gif": 0.011}
"""How far off a time of a container may be, whose clock is coarse."""


def all_clips() -> list[Clip]:
    """Every combination that can be made and says something."""
    h264 = clips("libx264", "mp4 mov mkv ts mpg flv avi nut", (0, 2))
    hevc = clips("libx265", "mp4 mkv ts", (0, 3))
    mpeg2 = clips("mpeg2video", "ts mpg vob mkv mxf wtv", (0, 2))
    mpeg4 = clips("mpeg4", "mp4 avi mkv", (0, 2)) + clips("mpeg4", "ts 3gp")
    others = clips("mpeg1video", "mpg", (0, 2)) + clips("libsvtav1", "mp4 mkv webm") + clips("ffv1", "avi mkv")
    others += clips("libvpx", "mkv webm ivf ogg") + clips("libvpx-vp9", "mkv webm ivf mp4") + clips("wmv2", "wmv")
    others += clips("mjpeg", "mp4 mov avi") + clips("prores_ks", "mov") + clips("msmpeg4", "avi wmv")
    others += clips("flv", "flv") + clips("h263", "3gp") + clips("rv10", "rm") + clips("gif", "gif")
    plain = [*h264, *hevc, *mpeg2, *mpeg4, *others]
    rates = [replace(c, rate="29.97") for c in plain if c.container != "gif"]
    rates += [replace(c, rate="uneven") for c in plain if c.container not in CONSTANT and "mpeg" not in c.codec]
    opened = [replace(c, open_gop=True) for c in [*h264, *hevc, *mpeg2] if c.b_frames]
    cuts = [replace(c, cut=cut) for c in [*plain, *opened] if c.container in _CUTTABLE for cut in (1, 7, 17)]
    turned = [c for c in plain if c.container in ("mp4", "mov", "mkv") and c.codec != "libsvtav1"]  # it blurs them
    turned = [replace(c, turned=degrees) for c in turned for degrees in (90, 180, 270)]
    return list(dict.fromkeys([*plain, *rates, *opened, *cuts, *turned, *_special()]))


def _special() -> list[Clip]:
    b264, streams = clips("libx264", "mp4 mkv ts", (2,)), []
    for extra in ("two streams", "second is default", "sound", "late", "interlaced", "refresh", "oblong pixels"):
        streams += [replace(c, extra=extra) for c in b264 if (c.container, extra) != ("ts", "second is default")]
    streams += [replace(c, extra="interlaced") for c in clips("mpeg2video", "ts mpg mkv", (2,))]
    mp4 = [Clip("mp4", "libx264", 2), Clip("mp4", "libx264"), Clip("mp4", "libx265", 3), Clip("mp4", "mpeg4")]
    for extra in ("no key frames listed", "wrong key frames listed", "starts later"):
        streams += [replace(c, extra=extra) for c in mp4]
    streams += [replace(c, extra="negative") for c in (*mp4[:2], b264[1])]
    streams += [replace(c, options=(("movflags", "frag_keyframe+empty_moov"),)) for c in mp4[::2]]
    ts = [Clip("ts", "libx264", 2), Clip("ts", "mpeg2video", 2), Clip("ts", "libx265", 3)]
    streams += [replace(c, extra=extra) for c in ts for extra in ("twice", "middle lost", "end lost", "clock wraps")]
    streams += [
        replace(c, container="m2ts", options=(("mpegts_m2ts_mode", "1"),), cut=cut) for c in ts for cut in (0, 7)
    ]
    streams += [replace(mp4[0], extra=extra) for extra in ("cover", "end lost")] + [replace(b264[1], extra="end lost")]
    few = [(mp4[0], 1), (mp4[0], 2), (ts[0], 1), (ts[0], 2), (Clip("mpg", "mpeg2video"), 1), (Clip("mkv", "ffv1"), 1)]
    return [*streams, *(replace(c, num=num) for c, num in few), Clip("h264", "libx264", 2)]


def clips(codec: str, containers: str, b_frames: Sequence[int] = (0,)) -> list[Clip]:
    """A clip for each container and number of B frames."""
    return [Clip(container, codec, b) for container in containers.split() for b in b_frames]


_CUTTABLE = ("ts", "mpg", "mkv", "mp4", "avi")


def report(clips: Sequence[Clip], backends: Sequence[str], folder: Path) -> dict[str, Counter]:
    """Makes and reads clips, prints what is wrong or refused, and returns the counts by backend."""
    paths = [make(clip, folder) for clip in clips]  # all before decord is loaded, whose libvpx PyAV would write with
    counts: dict[str, Counter] = {backend: Counter() for backend in backends}
    for clip, path in zip(clips, paths, strict=True):
        for backend, count in counts.items():
            result = compare(clip, path, backend)
            count += Counter(clips=1, frames=result.compared, wrong=len(result.wrong), refused=bool(result.refused))
            if result.wrong:
                print(f"{clip.name} by {backend}: {len(result.wrong)} wrong, the first {result.wrong[0]}")
            elif result.refused and backend == "pyav":  # the others refuse whatever is not plain
                print(f"{clip.name} is refused: {result.refused}")
    return counts


def main() -> int:
    from tpo_plugin.data.media import BACKENDS

    folder = Path(tempfile.mkdtemp())
    backends = [name for name, package in BACKENDS.items() if importlib.util.find_spec(package)]
    try:
        counts = report(all_clips(), backends, folder)
    finally:
        shutil.rmtree(folder)
    for backend, count in counts.items():
        print(
            f"{backend}: {count['clips']} combinations, {count['refused']} of them refused; {count['frames']} frames "
            f"compared, {count['wrong']} wrong"
        )
    return int(any(count["wrong"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
