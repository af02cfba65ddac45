"""Videos as people have them: a short form of `python -m tests.data.clips`, and what it cannot tell."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.clips import all_clips, compare
from tests.data.numbered import CAN_TURN, Clip, draw_number, make, read_number
from tpo_plugin.data.media import VideoOptions, read_frames, read_video, stream_video
from tpo_plugin.errors import MediaError

B264 = Clip("mp4", "libx264", 2)
SHORT = [
    B264,
    Clip("ts", "libx264", 2),
    Clip("ts", "libx264", 2, extra="clock wraps"),
    Clip("ts", "mpeg2video", 2, open_gop=True, cut=7),
    Clip("mpg", "mpeg2video", 2, rate="29.97"),
    Clip("avi", "libx264", 2),
    Clip("mkv", "libx264", 2, rate="uneven", open_gop=True),
    Clip("mp4", "libx264", 2, cut=17),
    *([Clip("mp4", "mpeg4", turned=90), replace(B264, turned=270)] if CAN_TURN else []),
    replace(B264, num=1),
    *(replace(B264, extra=extra) for extra in ("second is default", "cover", "sound", "starts later", "negative")),
    replace(B264, extra="no key frames listed"),
    Clip("mp4", "mpeg4", extra="no key frames listed"),
    Clip("mp4", "libx264", extra="wrong key frames listed"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[Clip, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {clip: make(clip, folder) for clip in SHORT}


@pytest.mark.parametrize("clip", SHORT, ids=lambda clip: clip.name)
@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_frames_and_times_are_those_of_decoding_in_order(files: dict[Clip, Path], clip: Clip, backend: str) -> None:
    if importlib.util.find_spec("decord") is None and backend == "decord":
        pytest.skip("decord is not installed")
    result = compare(clip, files[clip], backend)
    assert result.wrong == []
    if backend == "pyav":
        assert not result.refused
        assert result.compared > 4
    elif clip is not B264 and clip.extra not in ("sound",) and clip.num > 1:  # others than those are not for decord
        assert "read it by pyav" in result.refused


def test_the_list_of_all_clips_says_what_it_covers() -> None:
    clips = all_clips()
    assert len(clips) > 400
    assert {*SHORT} <= {*clips} | {c for c in SHORT if c.rate != "25" or c.open_gop or c.cut}


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (Clip("ts", "libx264", 2, extra="twice"), "is damaged: something in its middle cannot be decoded"),
        (Clip("ts", "libx264", 2, extra="middle lost"), "is damaged: something in its middle cannot be decoded"),
        (Clip("h264", "libx264", 2), "has no time stamps, so when a frame is shown is not known"),
    ],
)
def test_what_has_no_true_frames_or_times_is_refused(tmp_path: Path, clip: Clip, message: str) -> None:
    path = make(clip, tmp_path)
    for backend in ("auto", "pyav"):
        with pytest.raises(MediaError, match=rf"{path.name}: {message}"):
            read_video(path, VideoOptions(backend=backend, num_frames=clip.num))
    with pytest.raises(MediaError, match=message):
        list(stream_video(path))


def test_times_that_do_not_ascend_are_refused(tmp_path: Path) -> None:
    path = make(Clip("mpg", "mpeg2video", 2), tmp_path)
    path.write_bytes(2 * path.read_bytes())
    message = r"its times do not ascend: a frame at 0\.000 s comes behind one at 1\.880 s; encode it anew"
    with pytest.raises(MediaError, match=message):
        read_video(path)


def test_pixels_that_are_not_square_are_shown_as_a_player_does(tmp_path: Path) -> None:
    clip = replace(B264, extra="oblong pixels")
    path = make(clip, tmp_path)
    frames = read_video(path, VideoOptions(num_frames=3)).frames
    assert frames.shape == (3, 96, 256, 3)
    assert [read_number(frame) for frame in frames] == [0, 23, 47]
    with pytest.raises(MediaError, match="decord reads only MP4 and Matroska with one upright video stream of square"):
        read_video(path, VideoOptions(backend="decord"))


def test_a_file_without_a_frame(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="cannot be read as a video by pyav|has no"):
        read_video(make(replace(B264, num=0), tmp_path))
    (tmp_path / "cover.mp4").write_bytes(make(replace(B264, extra="cover", num=0), tmp_path).read_bytes())
    with pytest.raises(MediaError, match="has no video stream but a cover picture|has no frame"):
        read_video(tmp_path / "cover.mp4")


def test_all_readers_see_the_same_frame_at_a_time_rounded_to_milliseconds(tmp_path: Path) -> None:
    path = make(Clip("ts", "libx264", 2, rate="29.97"), tmp_path)
    clip = read_video(path, VideoOptions(num_frames=48))
    rounded = clip.times_s.round(3)  # 0.033 stands for 0.0333...
    assert [read_number(frame) for frame in read_frames(path, rounded)] == list(range(48))
    for start in (1, 2, 31):
        streamed = [(time_s, read_number(frame)) for time_s, frame in stream_video(path, rounded[start])]
        assert streamed == [(pytest.approx(clip.times_s[i]), i) for i in range(start, 48)]


def test_reading_numbers_can_fail() -> None:
    assert read_number(draw_number(301)) == 301
    for spoilt in (np.rot90(draw_number(5)), draw_number(5)[:, ::-1], draw_number(5)[::-1], draw_number(5) // 2 + 64):
        assert read_number(np.asarray(Image.fromarray(spoilt.copy()).resize((128, 96)))) == -1


@pytest.mark.slow
def test_no_combination_gives_a_wrong_frame(tmp_path: Path) -> None:
    from tests.data.clips import report

    counts = report(all_clips(), ["pyav"], tmp_path)
    assert counts["pyav"]["wrong"] == 0
    assert counts["pyav"]["frames"] > 60_000
    assert counts["pyav"]["refused"] < 0.08 * counts["pyav"]["clips"]
