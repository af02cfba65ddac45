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
from tpo_plugin import Prediction, TaskHead, TPOError
from tpo_plugin.cli.predict import draw, frame_time
from tpo_plugin.data import VideoClip, read_frame

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
    before, after = np.asarray(Image.open(picture)), np.asarray(Image.open(drawn))
    assert before.shape == after.shape
    assert (before != after).any()
    assert result["outputs"] == [str(drawn)]


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
    """Draws one pixel on a picture."""

    def draw(self, image: Image.Image, value: Any, target: Any = None) -> Image.Image:
        drawn = super().draw(image, value)
        drawn.putpixel(value, (255, 0, 0))
        return drawn


def test_a_head_that_draws_clips_writes_a_file_of_its_own(tmp_path: Path) -> None:
    heads = {"clip": ClipHead(), "dot": DotHead()}
    clip = VideoClip(np.zeros((2, 4, 4, 3), np.uint8), np.array([0.0, 1.0]), 2.0)

    def found(head: str, value: Any) -> Prediction:
        return Prediction(head, 0, value, None, None, "", (0, 0))

    both = [found("clip", 1), found("dot", (0, 0)), found("clip", 2), found("dot", (1, 1))]
    white = Image.new("RGB", (4, 4), "white")
    files = draw(heads, both, white, clip, tmp_path / "a.png")
    assert files == [tmp_path / "a_clip.txt", tmp_path / "a.png"]
    assert files[0].read_text() == "2 [1, 2]"
    dots = np.argwhere((np.asarray(Image.open(files[1])) == (255, 0, 0)).all(-1))
    assert dots.tolist() == [[0, 0], [1, 1]]
    assert draw(heads, both[:1], white, clip, tmp_path / "b.png") == [tmp_path / "b.txt"]
    assert draw(heads, [found("dot", (0, 0))], white, None, tmp_path / "c.png") == [tmp_path / "c.png"]
    assert draw(heads, [], white, clip, tmp_path / "d.png") == [tmp_path / "d.png"]


def test_the_same_as_text(world: Path) -> None:
    arguments = ["--image", world / "picture.png", "--route", "region"]
    found = json.loads(predict(world / "run", *arguments, "--json"))
    lines = predict(world / "run", *arguments).splitlines()
    assert lines[0] == found["text"]
    boxes = [line for line in lines if line.startswith("region: [")]
    assert len(boxes) == len(found["predictions"])
    assert f"score {found['predictions'][0]['score']:.3f}" in boxes[0]


def test_without_route_a_model_that_emits_no_trigger_draws_nothing(world: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.png"
    result = json.loads(
        predict(world / "run", "--image", world / "picture.png", "--output", drawn, "--json", prompt="how many?")
    )
    assert result["predictions"] == []
    assert (np.asarray(Image.open(world / "picture.png")) == np.asarray(Image.open(drawn))).all()


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
