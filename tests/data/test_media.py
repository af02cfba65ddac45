from __future__ import annotations

import importlib.util
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from packaging.version import Version
from PIL import Image, ImageCms

from tpo_plugin.data import media
from tpo_plugin.data.media import (
    BACKENDS,
    ImageOptions,
    VideoOptions,
    index,
    read_frame,
    read_image,
    read_video,
    stream_video,
)
from tpo_plugin.data.media.index import index_by_packets
from tpo_plugin.errors import MediaError, TPOError

Maker = Callable[..., Path]


def installed(name: str) -> bool:
    try:
        importlib.import_module(BACKENDS[name])
    except (ImportError, OSError, RuntimeError):
        return False
    return True


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if not installed(request.param):
        pytest.skip(f"{request.param} is not installed, or finds no FFmpeg")
    return request.param


def grey(frames: np.ndarray) -> np.ndarray:
    """The number of each frame, from its grey."""
    return frames.reshape(len(frames), -1).mean(1) / 4


def test_images_are_upright_rgb(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0, 0] = [255, 0, 0, 255]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (3, 2), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it
    Image.fromarray(pixels[..., :3]).save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png")
    assert (turned.size, turned.getpixel((1, 0))) == ((2, 3), (255, 0, 0))


def ramp() -> np.ndarray:
    return np.linspace(0, 65535, 4096).reshape(64, 64)


@pytest.mark.parametrize(("name", "dtype"), [("a.png", np.uint16), ("a.tif", np.uint16), ("b.tif", np.int32)])
def test_sixteen_bits_are_divided_by_256(tmp_path: Path, name: str, dtype: Any) -> None:
    values = ramp().astype(dtype)
    Image.fromarray(values).save(tmp_path / name)
    pixels = np.asarray(read_image(tmp_path / name))
    assert pixels.shape == (64, 64, 3)
    assert (pixels == (values >> 8)[..., None]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_in_which_0_is_white(tmp_path: Path, dtype: type) -> None:
    """As X-ray and fax machines write them; Pillow turns only those of eight bits over."""
    top = np.iinfo(dtype).max
    values = (ramp() * (top / 65535)).astype(dtype)
    Image.fromarray(values).save(tmp_path / "a.tif")
    black_is_0, white_is_0 = (struct.pack("<HHIHH", 262, 3, 1, value, 0) for value in (1, 0))
    data = (tmp_path / "a.tif").read_bytes()
    assert data.count(black_is_0) == 1
    (tmp_path / "a.tif").write_bytes(data.replace(black_is_0, white_is_0))
    pixels = np.asarray(read_image(tmp_path / "a.tif"))
    assert (pixels == 255 - (values >> (8 if top > 255 else 0))[..., None]).all()


def write_png(path: Path, pixels: np.ndarray, kind: int, *chunks: tuple[bytes, bytes]) -> Path:
    """A PNG of 16 bits a channel, which Pillow does not write in colours; `kind` is its colour type."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    whole = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(whole))
    return path


def test_sixteen_bits_in_colour_and_with_transparency(tmp_path: Path) -> None:
    grey = ramp().astype(int)
    colour = np.stack([grey, 65535 - grey, np.full_like(grey, 40000)], -1)
    assert (np.asarray(read_image(write_png(tmp_path / "a.png", colour, 2))) == colour >> 8).all()
    opaque = np.where(np.arange(64) < 32, 65535, 0) * np.ones((64, 1))
    pixels = np.asarray(read_image(write_png(tmp_path / "b.png", np.dstack([colour, opaque]), 6)))
    assert (pixels[:, :32] == colour[:, :32] >> 8).all()
    assert (pixels[:, 32:] == 255).all()
    path = write_png(tmp_path / "c.png", grey, 0, (b"tRNS", struct.pack(">H", int(grey[5, 5]))))
    pixels = np.asarray(read_image(path))
    assert (pixels[5, 5] == 255).all()
    assert (pixels[5, 6] == grey[5, 6] >> 8).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ramp().astype(np.float32),
            "holds floating-point numbers from 0 to 65535, and what is white is not known; save",
        ),
        ((9 * ramp()).astype(np.int32), "holds integers from 0 to 589815; expected at most 16 bits, 0 to 65535"),
        ((ramp() - 9).astype(np.int32), "holds integers from -9 to 65526"),
    ],
)
def test_numbers_whose_white_is_not_known_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(MediaError, match=rf"a\.tif: {message}"):
        read_image(tmp_path / "a.tif")


ONE_BIT = pytest.mark.skipif(
    Version(PIL.__version__) < Version("11"), reason="this Pillow forgets the transparency of pictures of one bit"
)


@pytest.mark.parametrize(
    ("mode", "colour", "saved"),
    [
        ("RGBA", (10, 20, 30, 0), {}),
        ("LA", (10, 0), {}),
        ("P", 3, {"transparency": 3}),
        ("L", 7, {"transparency": 7}),
        ("RGB", (7, 8, 9), {"transparency": (7, 8, 9)}),
        pytest.param("1", 1, {"transparency": 1}, marks=ONE_BIT),
    ],
)
def test_what_is_transparent_shows_the_background(
    tmp_path: Path, mode: str, colour: Any, saved: dict[str, Any]
) -> None:
    image = Image.new(mode, (4, 3), colour)
    if mode == "P":
        image.putpalette(bytes(range(256)) * 3)
    image.save(tmp_path / "a.png", **saved)
    assert read_image(tmp_path / "a.png").getpixel((2, 1)) == (255, 255, 255)
    options = ImageOptions(background="#ff8000")
    assert read_image(tmp_path / "a.png", options).getpixel((2, 1)) == (255, 128, 0)


def test_half_transparent_palettes_and_other_colour_spaces(tmp_path: Path) -> None:
    image = Image.new("P", (4, 3), 3)
    image.putpalette([value for value in range(256) for _ in range(3)])
    image.save(tmp_path / "a.png", transparency=bytes([255, 255, 255, 128]))
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (129, 129, 129)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").getpixel((0, 0)) == (255, 0, 0)


def test_the_first_of_several_pictures_is_taken_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, *others = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for name in ("a.gif", "a.png", "a.tif"):
        first.save(tmp_path / name, save_all=True, append_images=others)
        assert read_image(tmp_path / name).getpixel((0, 0)) == (255, 0, 0)
        assert f"{tmp_path / name}: holds 3 pictures, the first is taken" in caplog.text


def test_a_profile_is_left_alone(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGBA", (8, 8), (1, 2, 3, 255)).save(tmp_path / "a.png", icc_profile=profile)
    image = read_image(tmp_path / "a.png")
    assert (image.getpixel((0, 0)), image.info["icc_profile"]) == ((1, 2, 3), profile)


def test_large_pictures_are_not_opened(tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    with pytest.raises(
        MediaError, match=r"a\.png: a picture of 9000 x 9000 has 81,000,000 pixels, more than 67,108,864"
    ):
        read_image(tmp_path / "a.png")
    with pytest.raises(MediaError, match=r"has 81,000,000 pixels, more than 100; .*data\.image\.max_pixels"):
        read_image(tmp_path / "a.png", ImageOptions(max_pixels=100))
    assert read_image(tmp_path / "a.png", ImageOptions(max_pixels=10**8)).size == (9000, 9000)


def test_large_clips_are_not_read(steady_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        MediaError,
        match=r"a clip of 16 frames of 64 x 48 has 49,152 pixels, more than 49,151; .*data\.video\.max_pixels",
    ):
        read_video(steady_video, VideoOptions(max_pixels=49_151))
    assert len(read_video(steady_video, VideoOptions(max_pixels=49_152)).frames) == 16
    monkeypatch.setattr("tpo_plugin.data.media.index.MAX_PIXELS", 3071)
    for read in (read_video, lambda path: list(stream_video(path)), lambda path: read_frame(path, 0)):
        with pytest.raises(MediaError, match=r"steady\.mp4: a frame of 64 x 48 has 3,072 pixels, more than 3,071"):
            read(steady_video)


def test_a_folder_is_no_file_that_is_missing(tmp_path: Path) -> None:
    for name, read in (("a.png", read_image), ("a.mp4", read_video)):
        (tmp_path / name).mkdir()
        with pytest.raises(MediaError, match=rf"{name}: is a folder; expected a file that can be read as a"):
            read(tmp_path / name)


def test_broken_images_name_file_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(MediaError, match=r"a\.png: no such file"):
        read_image(path)
    path.touch()
    with pytest.raises(MediaError, match=r"a\.png: cannot be read as an image: the file is empty"):
        read_image(path)
    path.write_bytes(b"no image")
    with pytest.raises(MediaError, match=r"a\.png: cannot be read as an image: cannot identify"):
        read_image(path)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for name in ("a.png", "a.jpg"):
        path = tmp_path / name
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(MediaError, match=rf"{name}: cannot be read as an image: .*truncated"):
            read_image(path)


@pytest.mark.parametrize("sampling", ["uniform", "middle", "fps"])
def test_frames_and_times_of_a_steady_video(backend: str, sampling: str, steady_video: Path) -> None:
    clip = read_video(steady_video, VideoOptions(num_frames=6, sampling=sampling, fps=2, backend=backend))
    expected = {"uniform": [0, 9, 19, 29, 39, 49], "middle": [3, 11, 20, 28, 36, 45], "fps": [6, 19, 31, 44]}[sampling]
    assert clip.frames.dtype == np.uint8
    assert clip.frames.shape == (len(expected), 48, 64, 3)
    assert (clip.width, clip.height) == (64, 48)
    assert grey(clip.frames) == pytest.approx(expected, abs=0.5)
    assert clip.times_s == pytest.approx(np.array(expected) / 25, abs=1e-6)
    assert clip.duration_s == pytest.approx(2.0, abs=1e-6)


def test_times_of_an_uneven_video_are_the_files_own(
    backend: str, uneven_video: Path, uneven_starts_s: np.ndarray
) -> None:
    clip = read_video(uneven_video, VideoOptions(num_frames=50, backend=backend))
    assert grey(clip.frames) == pytest.approx(np.arange(50), abs=0.5)
    assert clip.times_s == pytest.approx(uneven_starts_s, abs=1e-6)
    slack = 0.04 if backend == "torchcodec" else 0  # it takes a packet's duration for its frame's
    assert clip.duration_s == pytest.approx(uneven_starts_s[-1] + 0.04, abs=slack + 1e-6)


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_fps_sampling_of_an_uneven_video(backend: str, uneven_video: Path, uneven_starts_s: np.ndarray) -> None:
    if not installed(backend):
        pytest.skip(f"{backend} is not installed")
    clip = read_video(uneven_video, VideoOptions(num_frames=99, sampling="fps", fps=4, backend=backend))
    wanted_s = np.arange(0.125, 4.24, 0.25)[: len(clip.times_s)]
    assert len(clip.times_s) == 16
    assert np.abs(clip.times_s - wanted_s).max() <= 0.06 + 1e-6  # half of the longest frame


def test_frames_are_found_once_while_a_file_stays_as_it_is(
    video_maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr(index, "index_by_packets", lambda path: looked.append(path) or index_by_packets(path))
    monkeypatch.setattr(index, "_remembered", index._Remembered(20))
    first, second = (video_maker(tmp_path / f"{n}.mp4", [40 * i for i in range(10 + n)]) for n in range(2))
    for path in (first, first, second, second):
        read_video(path)
    assert looked == [str(first), str(second)]
    assert len(read_video(first, VideoOptions(num_frames=10)).times_s) == 10, "21 frames were too many to keep"
    assert looked == [str(first), str(second), str(first)]
    video_maker(first, [40 * i for i in range(5)])
    assert read_video(first).duration_s == pytest.approx(0.2)
    first.unlink()
    with pytest.raises(MediaError, match="no such file"):
        read_video(first)


def test_frame_shown_at_a_time(backend: str, uneven_video: Path, uneven_starts_s: np.ndarray) -> None:
    for time_s in (0, 0.039, 0.041, 0.9, 1.0, 3.3, 4.23, read_video(uneven_video).duration_s):
        frame = read_frame(uneven_video, time_s, backend)
        shown = int(np.searchsorted(uneven_starts_s, time_s + 1e-9, side="right")) - 1
        assert grey(np.asarray(frame)[None]) == pytest.approx([shown], abs=0.5), time_s
    for time_s in (-0.1, 5):
        with pytest.raises(MediaError, match=rf"uneven\.mp4: has no frame at {time_s} s; it lasts 4\.2[48]0 s"):
            read_frame(uneven_video, time_s, backend)


def test_times_start_at_the_first_frame(backend: str, video_maker: Maker, tmp_path: Path) -> None:
    path = video_maker(tmp_path / "late.mp4", [1000 + 40 * i for i in range(10)])
    clip = read_video(path, VideoOptions(num_frames=10, backend=backend))
    assert clip.times_s == pytest.approx(np.arange(10) / 25, abs=1e-6)
    assert clip.duration_s == pytest.approx(0.4, abs=1e-6)


def test_backends_give_the_same_pixels(shared: Path) -> None:
    clips = {
        backend: read_video(shared / "media/01_dog.mp4", VideoOptions(num_frames=3, backend=backend))
        for backend in BACKENDS
        if installed(backend)
    }
    reference = clips["pyav"]
    assert reference.frames.shape == (3, 720, 1280, 3)
    for clip in clips.values():
        assert clip.times_s == pytest.approx(reference.times_s, abs=1e-6)
        assert clip.duration_s == pytest.approx(reference.duration_s, abs=1e-3)
        assert np.abs(clip.frames.astype(int) - reference.frames).mean() < 3  # colour conversions differ a little


def turned_video(path: Path, source: Path) -> Path:
    """A copy of an MP4 whose display matrix turns it by 90 degrees clockwise, as telephones write it."""
    data = bytearray(source.read_bytes())
    header = data.index(b"tkhd") + 4
    matrix = header + (52 if data[header] else 40)
    assert struct.unpack(">9i", data[matrix : matrix + 36]) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("backend", ["auto", "pyav", "torchcodec"])
def test_turned_videos_are_upright(backend: str, video_maker: Maker, tmp_path: Path) -> None:
    if backend != "auto" and not installed(backend):
        pytest.skip(f"{backend} is not installed, or finds no FFmpeg")
    import av

    source = tmp_path / "lying.mp4"
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32] = 255  # the upper left goes to the upper right
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    clip = read_video(turned_video(tmp_path / "turned.mp4", source), VideoOptions(num_frames=2, backend=backend))
    assert clip.frames.shape == (2, 64, 48, 3)
    assert clip.frames[0, :28, 28:].mean() > 240
    assert clip.frames[0, :28, :20].mean() < 15


def test_broken_videos_name_file_and_reason(
    backend: str, video_maker: Maker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = VideoOptions(num_frames=4, backend=backend)
    path = tmp_path / "a.mp4"
    with pytest.raises(MediaError, match=r"a\.mp4: no such file"):
        read_video(path, options)
    path.touch()
    with pytest.raises(MediaError, match=rf"a\.mp4: cannot be read as a video by {backend}: the file is empty"):
        read_video(path, options)
    path.write_bytes(b"no video" * 100)
    with pytest.raises(MediaError, match=rf"a\.mp4: cannot be read as a video by {backend}: .*Invalid data"):
        read_video(path, options)
    video_maker(path, [40 * i for i in range(50)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # its index stands at the end
    with pytest.raises(MediaError, match=rf"a\.mp4: cannot be read as a video by {backend}: .*Invalid data"):
        read_video(path, options)
    video_maker(path, [40 * i for i in range(50)], movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])  # its index says more than is there
    with pytest.raises(MediaError, match=r"a\.mp4: "):
        read_video(path, options)
    assert capfd.readouterr().err == ""


def test_truncation_is_named_by_pyav(video_maker: Maker, tmp_path: Path) -> None:
    path = video_maker(tmp_path / "a.mp4", [40 * i for i in range(50)], movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    for backend in ("pyav", "auto"):
        with pytest.raises(MediaError, match=r"a\.mp4: is truncated: its header lists 50 frames, \d are there"):
            read_video(path, VideoOptions(backend=backend))
    path = video_maker(tmp_path / "a.mkv", [400 * i for i in range(50)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(MediaError, match=r"a\.mkv: is truncated: its header says 1\d\.\d s, its data end at \d\.\d s"):
        read_video(path, VideoOptions(backend="pyav"))
    with pytest.raises(MediaError, match=r"a\.mkv: is truncated"):
        read_video(path)


def test_a_file_without_video(tmp_path: Path) -> None:
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match=r"sound\.mp4: has no video stream"):
        read_video(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "decrod"}, "backend: is 'decrod'; expected 'auto', 'decord', 'pyav' or 'torchcodec'"),
        ({"sampling": "unifrom"}, "sampling: is 'unifrom'; expected 'uniform', 'middle' or 'fps'"),
        ({"max_pixels": 0}, "max_pixels: is 0; expected a whole number of at least 1"),
        ({"num_frames": 0}, "num_frames: is 0; expected a whole number of at least 1"),
        ({"fps": 0}, "fps: is 0; expected a finite number above 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TPOError, match=message):
        VideoOptions(**options)


def test_missing_backends(monkeypatch: pytest.MonkeyPatch, steady_video: Path) -> None:
    monkeypatch.setitem(media.BACKENDS, "decord", "no_such_reader")
    assert read_video(steady_video).times_s[0] == 0  # "auto" takes PyAV
    with pytest.raises(
        TPOError, match=r"'decord' cannot be imported \(No module .*\): pip install no_such_reader"
    ) as caught:
        read_video(steady_video, VideoOptions(backend="decord"))
    assert not isinstance(caught.value, MediaError)  # that would be skipped
    monkeypatch.setitem(media.BACKENDS, "pyav", "no_such_reader")
    with pytest.raises(TPOError, match="'pyav' cannot be imported .*pip install no_such_reader"):
        read_video(steady_video)


def frame_list(folder: Path, num: int = 6, size: tuple[int, int] = (64, 48)) -> Path:
    """Frames whose grey is 20 times their number; the third is shown for longer."""
    (folder / "it's frames").mkdir()
    lines = ["ffconcat version 1.0", ""]
    for number in range(num):
        Image.new("RGB", size, (20 * number,) * 3).save(folder / f"it's frames/{number:05d}.png")
        lines += [f"file 'it'\\''s frames/{number:05d}.png'", f"duration {0.5 if number == 2 else 0.1}  # s"]
    path = folder / "list.ffconcat"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("backend", ["auto", "decord"])
def test_a_list_of_frames_is_a_video(tmp_path: Path, backend: str) -> None:
    path = frame_list(tmp_path)
    clip = read_video(path, VideoOptions(num_frames=6, backend=backend))
    assert clip.frames.shape == (6, 48, 64, 3)
    assert clip.frames.mean((1, 2, 3)).tolist() == [0, 20, 40, 60, 80, 100]
    assert clip.times_s == pytest.approx([0, 0.1, 0.2, 0.7, 0.8, 0.9])
    assert clip.duration_s == pytest.approx(1.0)
    assert np.asarray(read_frame(path, 0.69)).mean() == 40
    assert np.asarray(read_frame(path, 1.0)).mean() == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("ffconcat version 1.0", "expected at least one frame, and a duration above 0 s behind each"),
        ("file 'a.png'", "expected at least one frame, and a duration"),
        ("file 'a.png'\nduration 0", "expected at least one frame, and a duration above 0 s"),
        ("file 'a.png'\nfile 'b.png'", "line 2 is neither a frame's file"),
        ("file 'a.png'\nduration soon", "could not convert string to float"),
        ("file 'a.png'\nduration 1", "a.png: no such file"),
    ],
)
def test_wrong_lists_of_frames_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.ffconcat"
    path.write_text(text)
    with pytest.raises(MediaError, match=rf"list\.ffconcat: .*{message}"):
        read_video(path)


def test_frames_of_other_sizes_are_named(tmp_path: Path) -> None:
    path = frame_list(tmp_path)
    Image.new("RGB", (32, 24)).save(tmp_path / "it's frames/00003.png")
    with pytest.raises(
        MediaError, match=r"list\.ffconcat: its frames have different sizes: that at 0\.700 s is 32 x 24, those before"
    ):
        read_video(path)
    assert read_frame(path, 0.0).size == (64, 48)
