"""`tpo predict`: text, JSON, and a picture with what the heads found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin import TaskHead, TPOError
from tpo_plugin.asking import frame_time
from tpo_plugin.data import VideoClip, read_frame
from tpo_plugin.drawing import LEGIBLE_SIDE, Found, draw, draw_on, enlarged

QUESTION = "where is the red circle?"


def predict(run: Path, *arguments: object, prompt: str = QUESTION) -> str:
    command = ["predict", str(run), "--prompt", prompt, "--max-new-tokens", "8", *map(str, arguments)]
    result = CliRunner().invoke(tpo_plugin.cli.app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_an_image_gives_text_json_and_a_picture(world: Path, tmp_path: Path) -> None:
    picture, drawn = world / "picture.png", tmp_path / "drawn.png"
    result = json.loads(predict(world / "run", "--image", picture, "--route", "region", "--output", drawn, "--json"))
    assert (result["image"], result["width"], result["height"]) == (str(picture), 64, 48)
    assert "<boxes>" not in result["text"]
    first = result["predictions"][0]
    assert first["head"] == "region"
    assert not first["cut_off"]
    box = np.array(first["value"])
    assert box.shape == (4,)
    assert np.allclose(first["value_in_units"], box * [64, 48, 64, 48], atol=1e-4)
    before, after = np.asarray(enlarged(Image.open(picture))), np.asarray(Image.open(drawn))
    assert before.shape == (480, 640, 3)
    assert after.shape[0] >= 480 + 20  # the answer stands below
    assert (before != after[:480]).any()
    assert (after[480:] != 255).any()


def test_a_host_that_moved(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "world")
    run, moved = tmp_path / "world" / "run", tmp_path / "world" / "moved"
    (tmp_path / "world" / "host").rename(moved)
    saved = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(saved | {"host": str(tmp_path / "world" / "host")}))
    asked = ("--image", world / "picture.png", "--route", "region", "--json")
    with pytest.raises(TPOError, match=r"its host .* cannot be loaded .*; give host= .--host. if it has moved"):
        predict(run, *asked)
    assert json.loads(predict(run, *asked, "--host", moved)) == json.loads(predict(world / "run", *asked))


class ClipHead(TaskHead):
    """Draws a whole clip into a file of its own."""

    def draw_video(self, video: VideoClip, values: list[Any], path: Path) -> Path:
        file = path.with_suffix(".txt")
        file.write_text(f"{len(video.times_s)} {values}")
        return file


class DotHead(TaskHead):
    """Draws a red rectangle on a picture, (left, top, right, bottom) in 0 to 1."""

    def draw(self, image: Image.Image, value: Any, target: Any = None) -> Image.Image:
        drawn = super().draw(image, value)
        left, top, right, bottom = (round(s * length) for s, length in zip(value, image.size * 2, strict=True))
        drawn.paste((255, 0, 0), (left, top, right, bottom))
        return drawn


class BareHead(TaskHead):
    """Does not draw."""


HEADS = {"clip": ClipHead(), "dot": DotHead(), "bare": BareHead()}
SMALL = Image.new("RGB", (32, 16), "white")
DOT, LOWER = (0.25, 0.5, 0.5, 0.75), (0.75, 0.75, 1.0, 1.0)


def test_a_head_that_draws_clips_writes_a_file_of_its_own(tmp_path: Path) -> None:
    clip = VideoClip(np.zeros((2, 4, 4, 3), np.uint8), np.array([0.0, 1.0]), 2.0)

    def written(name: str, found: list[Found], clip: VideoClip | None = clip) -> list[Path]:
        drawing = draw(HEADS, found, SMALL, clip, tmp_path / name)
        assert drawing.undrawn == []
        return list(drawing.files)

    both = [Found("clip", 1), Found("dot", DOT), Found("clip", 2), Found("dot", LOWER)]
    files = written("a.png", both)
    assert files == [tmp_path / "a_clip.txt", tmp_path / "a.png"]
    assert files[0].read_text() == "2 [1, 2]"
    pixels = np.asarray(Image.open(files[1]))
    assert pixels.shape == (320, 640, 3)
    assert pixels[200, 200].tolist() == pixels[300, 600].tolist() == [255, 0, 0]
    assert written("b.png", both[:1]) == [tmp_path / "b.txt"]
    assert written("c.png", both[1:2], None) == [tmp_path / "c.png"]
    assert written("d.png", []) == [tmp_path / "d.png"]
    assert written("e.mp4", both[1:2], None) == [tmp_path / "e.png"]


def test_labels_stand_at_what_they_are_of_and_beside_each_other() -> None:
    drawn, undrawn = draw_on(HEADS, [Found("dot", DOT, "1 dot 0.93"), Found("dot", DOT, "2 dot 0.51")], SMALL)
    assert not undrawn
    pixels = np.asarray(drawn).astype(int)
    dark = np.argwhere(pixels.sum(-1) < 150)
    assert dark[:, 1].min() == 160  # the left side of the rectangle
    assert dark[:, 0].min() < 160 <= dark[:, 0].max() + 2  # above it; the second stands below the first
    assert (np.asarray(enlarged(SMALL)) == 255).all()
    assert enlarged(Image.new("L", (9, 900))).size == (9, 900)
    assert max(enlarged(Image.new("L", (9, 90))).size) == LEGIBLE_SIDE


def test_what_cannot_be_drawn_is_said() -> None:
    nothing = Found("dot", (0, 0, 0, 0), "2 dot")
    drawn, undrawn = draw_on(HEADS, [Found("bare", 1, "1 bare"), nothing, Found("clip", 2)], SMALL)
    assert undrawn == [
        "1 bare: head 'bare' does not draw",
        "2 dot: head 'dot' marks nothing in this picture",
        "clip: head 'clip' draws whole clips alone",
    ]
    assert (np.asarray(drawn) == 255).all()


def test_the_same_as_text(world: Path) -> None:
    arguments = ["--image", world / "picture.png", "--route", "region"]
    found = json.loads(predict(world / "run", *arguments, "--json"))
    lines = predict(world / "run", *arguments).splitlines()
    assert lines[0] == found["text"]
    boxes = [line for line in lines if line.startswith("region: [")]
    assert len(boxes) == len(found["predictions"])
    first = found["predictions"][0]
    assert f"score {first['head_score']:.3f}, called with probability {first['score']:.3f}" in boxes[0]


def test_without_route_a_model_that_emits_no_trigger_draws_nothing(world: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.png"
    result = json.loads(
        predict(world / "run", "--image", world / "picture.png", "--output", drawn, "--json", prompt="how many?")
    )
    assert result["predictions"] == []
    assert (np.asarray(enlarged(Image.open(world / "picture.png"))) == np.asarray(Image.open(drawn))[:480]).all()


@pytest.mark.parametrize(
    ("prompt", "option", "expected"),
    [
        (QUESTION, [], (1.0, "middle")),
        ("where is the red circle at 0.3 seconds?", [], (0.3, "prompt")),
        ("where is the red circle at 0.3 seconds?", ["--time", 1.7], (1.7, "option")),
    ],
)
def test_a_video_says_which_frame(
    prompt: str, option: list, expected: tuple[float, str], world: Path, tmp_path: Path
) -> None:
    drawn = tmp_path / "drawn.png"
    arguments = ["--video", world / "clip.mp4", "--output", drawn, "--json", *option]
    result = json.loads(predict(world / "run", *arguments, prompt=prompt))
    assert result["duration_s"] == pytest.approx(2.0, abs=0.01)
    assert result["frame"]["time_s"] == pytest.approx(expected[0], abs=0.01)
    assert result["frame"]["from"] == expected[1]
    frame = np.asarray(read_frame(world / "clip.mp4", expected[0]))  # of one grey, on which boxes may be drawn
    assert np.median(np.asarray(Image.open(drawn))) == np.median(frame)


@pytest.mark.parametrize(
    ("prompt", "seconds"),
    [
        ("where is it at 1.5 seconds?", 1.5),
        ("At 2s, where is it?", 2.0),
        ("at 3 sec", 3.0),
        ("at 7 second", 7.0),
        ("look at 2 shapes", None),
        ("that 4 seconds", None),
        ("at 3 pm", None),
    ],
)
def test_times_that_a_prompt_states(prompt: str, seconds: float | None) -> None:
    expected = (5.0, "middle") if seconds is None else (seconds, "prompt")
    assert frame_time(None, prompt, 10.0) == expected


def test_a_box_can_be_given(world: Path) -> None:
    task = json.dumps({"head": "region", "boxes": [[0.1, 0.1, 0.5, 0.5]]})
    arguments = ["--image", world / "picture.png", "--json", "--task", task]
    assert "text" in json.loads(predict(world / "run", *arguments, prompt="what is <region>?"))


def test_text_alone_can_be_asked(world: Path) -> None:
    result = json.loads(predict(world / "run", "--json", "--route", "region", prompt="how many?"))
    assert "value_in_units" not in result["predictions"][0]
    assert "width" not in result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "a.png", "--video", "b.mp4"], "both --image and --video were given"),
        (["--image", "a.png", "--time", 1], "--time was given without --video"),
        (["a.png", "--image", "b.png"], "a.png was given beside --image, --video or --data; expected one way to say"),
        (["--data", "a.jsonl"], "--data has the questions with their media; leave --prompt, --image and --video out"),
        (["--media", "media"], "--media was given without --data; it is about the media that records name"),
        (["--confine"], "--confine was given without --data; it is about the media that records name"),
        (["--output", "a.png"], "--output draws on an image or a frame of a video"),
        (["--task", "{boxes}"], "is not JSON .*; for example --task"),
        (["--task", "[1]"], "is no object; for example --task"),
        (["--image", "missing.png"], "missing.png: no such file"),
        (["--route", "regoin"], "route='regoin' is not an applied head; did you mean 'region'"),
    ],
)
def test_wrong_use(arguments: list, message: str, world: Path) -> None:
    with pytest.raises(TPOError, match=message):
        predict(world / "run", *arguments)


def test_a_time_beyond_the_video(world: Path) -> None:
    with pytest.raises(TPOError, match=r"has no frame at 9.0 s; it lasts 2"):
        predict(world / "run", "--video", world / "clip.mp4", "--time", 9)


def test_a_folder_that_is_no_run(world: Path) -> None:
    with pytest.raises(TPOError, match=r"has no run.json; expected the output_dir of tpo train"):
        predict(world / "host")


def several(run: Path, *arguments: object) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, the JSON of each line, and what stands beside it."""
    command = ["predict", str(run), "--max-new-tokens", "8", "--json", *map(str, arguments)]
    result = CliRunner().invoke(tpo_plugin.cli.app, command, catch_exceptions=False)
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def test_several_images_are_all_given_to_one_question(world: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.png"
    Image.new("RGB", (64, 48), "red").save(second)
    arguments = ["--route", "region", "--json"]
    both = json.loads(predict(world / "run", "--image", world / "picture.png", "--image", second, *arguments))
    assert both["image"] == [str(world / "picture.png"), str(second)]
    alone = [json.loads(predict(world / "run", "--image", p, *arguments)) for p in (world / "picture.png", second)]
    values = [answer["predictions"][0]["value"] for answer in (both, *alone)]
    assert not np.allclose(values[0], values[1], atol=1e-4)
    assert not np.allclose(values[0], values[2], atol=1e-4)


def test_a_folder_and_files_are_asked_one_by_one(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    Image.new("RGB", (32, 32), "red").save(folder / "a.png")
    (folder / "b.mp4").write_bytes((world / "clip.mp4").read_bytes())
    (folder / "c.jpg").write_text("no picture")
    (folder / "notes.txt").touch()
    drawn = tmp_path / "drawn"
    code, found, beside = several(
        *(world / "run", folder, world / "picture.png", "--prompt", QUESTION, "--route", "region", "--output", drawn)
    )
    assert code == 1  # one cannot be read
    media = [line.get("image", line.get("video")) for line in found]
    assert media == [str(folder / name) for name in ("a.png", "b.mp4", "c.jpg")] + [str(world / "picture.png")]
    assert "c.jpg" in found[2]["error"]
    assert found[1]["frame"]["from"] == "middle"
    for line in (found[0], found[1], found[3]):
        kind = "video" if "video" in line else "image"
        single = json.loads(predict(world / "run", f"--{kind}", line[kind], "--route", "region", "--json"))
        assert single["text"] == line["text"]
        assert np.allclose(single["predictions"][0]["value"], line["predictions"][0]["value"], atol=1e-5)
    files = sorted(file.name for file in drawn.iterdir())
    assert files == ["00000-a.png", "00001-b.png", "00003-picture.png"]
    assert [line.removeprefix("drawn: ") for line in beside.splitlines() if line.startswith("drawn")] == [
        str(drawn / name) for name in files
    ]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TPOError, match="holds neither an image nor a video; give another folder"):
        several(world / "run", empty, "--prompt", QUESTION)


def test_a_folder_of_a_pictures_name_is_no_picture(world: Path, tmp_path: Path) -> None:
    (tmp_path / "media" / "dir.png").mkdir(parents=True)
    shutil.copy(world / "picture.png", tmp_path / "media" / "dir.png" / "a.png")
    code, found, _ = several(world / "run", tmp_path / "media", "--prompt", QUESTION)
    assert (code, [line["image"] for line in found]) == (0, [str(tmp_path / "media" / "dir.png" / "a.png")])


def test_options_that_nothing_asked_about_can_use(world: Path) -> None:
    data = ["--data", world / "records.jsonl"]
    message = "--time was given, and nothing that is asked about is a video; leave it out"
    for about in ([world / "picture.png", "--prompt", QUESTION], data):
        with pytest.raises(TPOError, match=message):
            several(world / "run", *about, "--time", 1)
    both = [world / "picture.png", world / "clip.mp4", "--prompt", QUESTION, "--time", 1]
    code, found, _ = several(world / "run", *both)
    assert (code, found[1]["frame"]["from"]) == (0, "option")
    with pytest.raises(TPOError, match="--task was given with --data; expected the tasks in the records"):
        several(world / "run", *data, "--task", json.dumps({"head": "region", "boxes": [[0.1, 0.1, 0.5, 0.5]]}))


def test_records_in_and_json_lines_out(world: Path) -> None:
    code, found, _ = several(world / "run", "--data", world / "records.jsonl", "--batch-size", 3)
    assert code == 0
    assert [line["record"].rpartition(":")[2] for line in found] == ["1", "2", "3", "4"]
    assert [line.get("image") for line in found] == [str(world / "picture.png")] * 2 + [None] * 2
    assert found[0]["text"] == json.loads(predict(world / "run", "--image", world / "picture.png", "--json"))["text"]
    assert found[3]["text"] == json.loads(predict(world / "run", "--json", prompt="how many?"))["text"]


def test_an_answer_is_there_whatever_becomes_of_its_drawing(world: Path, tmp_path: Path) -> None:
    video = ["--video", world / "clip.mp4", "--route", "region"]
    printed = predict(world / "run", *video, "--output", tmp_path / "new" / "answer.mp4")
    assert f"drawn: {tmp_path / 'new' / 'answer.png'}" in printed
    (tmp_path / "taken.png").mkdir()
    command = ["predict", str(world / "run"), "--prompt", QUESTION, *map(str, video), "--json"]
    result = CliRunner().invoke(tpo_plugin.cli.app, [*command, "--output", str(tmp_path / "taken.png")])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["predictions"][0]["head"] == "region"
    assert "is answered, and cannot be drawn" in result.stderr
    assert "give another --output" in result.stderr


def test_a_checkpoint_can_be_asked(world: Path) -> None:
    (checkpoint,) = (world / "run/only").glob("checkpoint-*")
    arguments = ["--image", world / "picture.png", "--route", "region", "--json"]
    assert predict(checkpoint, *arguments) == predict(world / "run", *arguments)
