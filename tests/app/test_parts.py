"""What the page is made of, without a browser: examples, boxes that are given, figures, videos that play."""

from __future__ import annotations

import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import av
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin import Prediction, TPOError
from tpo_plugin.app.axis import MAX_SPANS, axis, has_spans
from tpo_plugin.app.chat import Chat, Conversation
from tpo_plugin.app.examples import examples_of, sources_of, wordings
from tpo_plugin.app.figures import figures, marked
from tpo_plugin.app.inputs import Box, box_heads, shown_time, tasks_of
from tpo_plugin.app.playing import playable
from tpo_plugin.asking import Answer, ask
from tpo_plugin.data import VideoOptions, prompt_record, read_sample, stream_video, write_video
from tpo_plugin.serve.limits import Limits
from tpo_plugin.training.config import DataConfig, DataSource, StageConfig, TrainConfig

READING = DataConfig(video=VideoOptions(num_frames=4))
BOX = Box((0.1, 0.2, 0.5, 0.6), 1.25)


def test_a_box_becomes_the_task_of_each_head_that_takes_one(model: Any) -> None:
    heads = box_heads(model.tpo)
    assert {name: (head.field, head.follows) for name, head in heads.items()} == {
        "region": ("boxes", False), "mask": ("box", True)
    }  # fmt: skip
    tasks = tasks_of(model.tpo, "what is <region>, and follow <mask>", BOX)
    assert tasks == [
        {"head": "region", "boxes": [[0.1, 0.2, 0.5, 0.6]], "time": 1.25},
        {"head": "mask", "box": [0.1, 0.2, 0.5, 0.6], "time": 1.25},
    ]
    record = prompt_record(model.tpo, "what is <region>, and follow <mask>", tasks=tasks)
    assert [task["head"] for task in record.turns[0].tasks] == ["region", "mask"]
    assert tasks_of(model.tpo, "how many?", None) == []
    with pytest.raises(TPOError, match="stands for a box; draw one with the mouse"):
        tasks_of(model.tpo, "what is <region>?", None)
    with pytest.raises(TPOError, match="the head 'temporal' takes no box"):
        tasks_of(model.tpo, "when is <temporal>?", BOX)
    assert [shown_time(text, box, 2.0) for text, box in (("a", None), ("a", BOX), ("at 0.5 seconds", BOX))] == [
        1.0, 1.25, 0.5
    ]  # fmt: skip


def test_examples_are_of_each_kind_and_come_from_the_held_out_records(model: Any, media: Path) -> None:
    config = TrainConfig(model="host", output_dir="run", data=READING)
    config.stages = {"a": StageConfig(), "b": StageConfig(eval_data=[DataSource(file=str(media / "records.jsonl"))])}
    assert sources_of(config, ["x.jsonl"])[0].file == "x.jsonl"
    examples = examples_of(sources_of(config, []), model.tpo, config)
    assert [(example.medium.name, example.text) for example in examples] == [
        ("0.png", "where is the red circle?"),
        ("1.png", "what shape is the object in <region>?"),
        ("clip.mp4", "when does it leave?"),
        ("2.png", "is there a red circle?"),
    ]  # one file is missing
    assert [example.box for example in examples] == [None, Box((0.1, 0.2, 0.5, 0.6)), None, None]
    assert examples[2].thumbnail.size == (64, 48)
    assert wordings(examples, model.tpo) == {
        "region": "what shape is the object in <region>?", "mask": "follow <mask>."
    }  # fmt: skip


def predicted(model: Any, head: str, value: Any, span: tuple[int, int] = (0, 0)) -> Prediction:
    own = model.tpo.heads[head]
    return Prediction(head, 0, value, 0.75, None, "", span, _head=own)


def test_an_axis_has_the_spans_to_play_from() -> None:
    spans = [[0.5, 1.0], [1.9, 2.0], [0.0, 0.1], [1.0, 1.1], [1.2, 1.3], [1.4, 1.5]]
    value = {"spans_s": spans, "scores": [0.9, *[0.1] * 5], "saliency": [0.0, 2.0], "times_s": [0.5, 1.5]}
    drawn = axis(value, 2.0, "a <b>")
    assert has_spans(value)
    assert not has_spans([0.1, 0.2])
    assert [float(seek) for seek in re.findall(r'data-seek="([\d.]+)"', drawn)] == [s[0] for s in spans[:MAX_SPANS]]
    assert "and 1 weaker" in drawn
    assert "0.5 to 1.0 s, 0.90" in drawn
    assert "a &lt;b&gt;" in drawn
    x, width = (float(v) for v in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn)[0])
    assert (x, width) == (18 + 0.25 * 524, 0.25 * 524)
    assert "No span was found" in axis({"spans_s": []}, 2.0, "none")


def test_figures_of_several_predictions(model: Any, media: Path, tmp_path: Path) -> None:
    sample = read_sample(prompt_record(model.tpo, "?", videos=[media / "clip.mp4"]), READING.video)
    spans = {"spans_s": torch.tensor([[0.5, 1.0]]), "scores": torch.tensor([0.5])}
    found = [predicted(model, "temporal", spans), predicted(model, "region", torch.tensor([0.25, 0.25, 0.75, 0.75]))]
    found += [predicted(model, "bare", torch.tensor([1.0])), predicted(model, "region", None)]
    found[-1].cut_off = True
    parts = figures(model.tpo.heads, sample, Answer("", found), 1.0, media / "clip.mp4", tmp_path)
    assert len(parts) == 4
    assert "<video" in parts[0]
    assert 'data-seek="0.5"' in parts[0]
    assert "1 temporal 0.75" in parts[0]
    assert "2 region 0.75 · 3 bare 0.75 · at 1.0 s" in parts[1]
    assert parts[2] == "<p>3 bare 0.75: head &#x27;bare&#x27; does not draw</p>"
    assert "region: cut off by the longest answer" in parts[3]
    pixels = np.asarray(Image.open(tmp_path / "found.png")).astype(int)
    orange = np.argwhere(np.abs(pixels - (255, 140, 0)).max(-1) == 0)
    assert np.abs(orange.min(0) - (120, 160)).max() <= 4
    assert np.abs(orange.max(0) - (359, 479)).max() <= 4
    text = read_sample(prompt_record(model.tpo, "?"))
    assert figures(model.tpo.heads, text, Answer("", found[1:2]), None, None, tmp_path) == [
        "<p>region 0.75: there is no picture to draw on</p>"
    ]


def test_several_predictions_have_their_numbers_in_the_text(model: Any) -> None:
    tokenizer = model.tpo.tokenizer
    ids = tokenizer.encode("it is here at centre", add_special_tokens=False)
    text = tokenizer.decode(ids)
    found = [predicted(model, "region", 1, (0, 3)), predicted(model, "region", 2, (3, len(ids)))]
    answer = Answer(text, found, token_ids=ids)
    assert marked(tokenizer, answer) == "it is here [1] at centre [2]"
    assert marked(tokenizer, Answer(text, found[:1], token_ids=ids)) == text


def test_a_video_that_no_browser_plays_is_written_anew(media: Path, tmp_path: Path) -> None:
    frames = list(stream_video(media / "clip.mp4"))
    plays = playable(write_video(tmp_path / "plays.mp4", frames, 2.0).rename(tmp_path / "given"), 2.0)
    assert plays == tmp_path / "shown.mp4"
    assert plays.read_bytes() == (tmp_path / "given").read_bytes()
    plays.unlink()
    shutil.copyfile(media / "clip.mp4", tmp_path / "given")
    written = playable(tmp_path / "given", 2.0)
    assert written.read_bytes() != (tmp_path / "given").read_bytes()
    with av.open(str(written)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    assert [s for s, _ in stream_video(written)] == pytest.approx([s for s, _ in frames], abs=1e-3)


def test_an_answer_grows_and_is_the_model_s_own(model: Any, media: Path, tmp_path: Path) -> None:
    with Chat(model, READING, Limits(max_new_tokens=8), tmp_path) as chat:
        conversation = Conversation()
        conversation.about(chat.open(media / "0.png", tmp_path))
        for number, question in enumerate(("where is the red circle?", "how many objects are there?"), 1):
            grown = [conversation.exchanges[-1].answer for _ in chat.ask(conversation, question, "region", tmp_path)]
            assert len(set(grown)) > 2
            assert all(after.startswith(before) for before, after in pairwise(grown))
            exchange = conversation.exchanges[-1]
            assert (exchange.answer, exchange.error, len(conversation.exchanges)) == (grown[-1], "", number)
            assert "region" in "".join(exchange.figures)
        record = prompt_record(model.tpo, "<image>\nwhere is the red circle?", images=[media / "0.png"])
        (answer,) = ask(model, [read_sample(record)], route="region", max_new_tokens=8)
        assert conversation.exchanges[0].answer == answer.text
        list(chat.ask(conversation, "what is <region>?", None, tmp_path))
        assert "draw one with the mouse" in conversation.exchanges[-1].error
        list(chat.ask(conversation, "how many?", None, tmp_path))  # what was not answered is not part of what is asked
        assert conversation.exchanges[-1].error == ""
        assert len(conversation.request().messages) == 5


@pytest.mark.parametrize("name", ["list.ffconcat", "words.txt", "page.html"])
def test_what_is_neither_picture_nor_video_is_refused(model: Any, media: Path, tmp_path: Path, name: str) -> None:
    given = tmp_path / name
    given.write_text(f"file '{media / '0.png'}'\nduration 1\n" if name.startswith("list") else "<b>words</b>")
    with pytest.raises(TPOError, match=f"{name} is neither a video that can be read nor a picture"):
        Chat(model, READING, Limits(), tmp_path).open(given, tmp_path)


def broken_pictures(folder: Path) -> dict[str, Path]:
    """A picture of too many pixels, and one whose end is missing."""
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    whole = folder / "whole.png"
    Image.effect_noise((64, 48), 50).save(whole)
    (folder / "cut.png").write_bytes(whole.read_bytes()[:300])
    return {name: folder / f"{name}.png" for name in ("bomb", "cut")}


@pytest.mark.parametrize(("name", "why"), [("bomb", "decompression bomb"), ("cut", "truncated")])
def test_a_picture_that_cannot_be_read_is_named_as_it_was_given(
    model: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, name: str, why: str
) -> None:
    given = broken_pictures(tmp_path_factory.mktemp("given"))[name]
    with pytest.raises(TPOError, match=rf"^{name}\.png: cannot be read as an image: .*{why}") as refused:
        Chat(model, READING, Limits(), tmp_path).open(given, tmp_path)
    assert "/" not in str(refused.value)


def test_an_error_of_a_question_names_no_file_of_the_app(model: Any, media: Path, tmp_path: Path) -> None:
    folder = tmp_path / "session"
    folder.mkdir()
    with Chat(model, READING, Limits(max_new_tokens=4), tmp_path) as talk:
        conversation = Conversation()
        conversation.about(talk.open(media / "clip.mp4", folder))
        conversation.box = Box((0.1, 0.2, 0.5, 0.6), 99.0)
        list(talk.ask(conversation, "follow <mask>", "mask", folder))
    assert conversation.exchanges[-1].error.startswith("data: has no frame at 99.0 s; it lasts 2.")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:gradio")
@pytest.mark.parametrize("failure", [None, RuntimeError("a reader of others")])
def test_an_upload_that_fails_leaves_no_files(
    model: Any,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception | None,
) -> None:
    gradio = pytest.importorskip("gradio", reason="needs gradio, whose pages the browser shows")
    from tpo_plugin.app.page import Page

    given = broken_pictures(tmp_path_factory.mktemp("given"))["bomb"]
    talk = Chat(model, READING, Limits(), tmp_path)
    if failure is not None:
        monkeypatch.setattr(Chat, "open", Mock(side_effect=failure))
    with pytest.raises(RuntimeError if failure else gradio.Error, match="others" if failure else "bomb.png: cannot be"):
        Page(talk, "tiny", [], "").upload(str(given), Conversation(), Mock(session_hash="one"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["gradio", "uvicorn"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("uvicorn")
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "tpo_plugin.app.page", raising=False)
    with pytest.raises(TPOError, match=rf"the package {missing} is not installed; pip install 'tpo-plugin\[app\]'"):
        CliRunner().invoke(tpo_plugin.cli.app, ["app", str(tmp_path)], catch_exceptions=False)
