"""What a server does with questions that arrive together, without the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tpo_plugin import Prediction, TPOError
from tpo_plugin.asking import Answer, ask, load, text_places
from tpo_plugin.data import prompt_record, read_sample
from tpo_plugin.generation.answers import words
from tpo_plugin.serve import batching
from tpo_plugin.serve.batching import Batcher, Question
from tpo_plugin.serve.limits import Limits

LONG_S = 600.0
"""A window that no test waits for: a batch begins because it is full."""


@pytest.fixture(scope="module")
def model(world: Path) -> Any:
    return load(world / "run")[0]


@pytest.fixture
def questions(model: Any, world: Path) -> Callable[..., list[Question]]:
    """Questions of different lengths about one picture, a clip, or nothing."""

    def make(media: str, number: int = 4, **options: Any) -> list[Question]:
        given = {"picture": {"images": [world / "picture.png"]}, "clip": {"videos": [world / "clip.mp4"]}}.get(
            media, {}
        )
        asked: dict[str, Any] = {"route": "region", "max_new_tokens": 8} | options
        prompts = [" ".join(["where is the red circle?"] * (1 + n)) for n in range(number)]
        return [Question(read_sample(prompt_record(model.tpo, prompt, **given)), **asked) for prompt in prompts]

    return make


@contextmanager
def answering(model: Any, sizes: list[int], **limits: Any) -> Iterator[Batcher]:
    batcher = Batcher(model, Limits(**{"max_batch": 4, "window_s": LONG_S, "threads": 2} | limits), sizes.append)
    try:
        yield batcher
    finally:
        batcher.close()


def assert_same(found: Answer, expected: Answer) -> None:
    names = ("text", "prompt_tokens", "start", "token_ids", "ended")
    assert [getattr(found, name) for name in names] == [getattr(expected, name) for name in names]
    for mine, wanted in zip(found.predictions, expected.predictions, strict=True):
        assert (mine.position, mine.text_span, mine.text) == (wanted.position, wanted.text_span, wanted.text)
        np.testing.assert_allclose(mine.value, wanted.value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("media", ["nothing", "picture", "clip"])
def test_a_full_batch_is_answered_at_once_and_as_each_alone(media: str, model: Any, questions: Any) -> None:
    sizes: list[int] = []
    asked = questions(media)
    with answering(model, sizes) as batcher:
        for question in asked:
            batcher.submit(question)
        answers = [question.result.result(timeout=LONG_S) for question in asked]
    assert sizes == [4]
    assert len({answer.prompt_tokens for answer in answers}) == 4
    for question, answer in zip(asked, answers, strict=True):
        assert answer.predictions
        assert_same(answer, ask(model, [question.sample], route="region", max_new_tokens=8)[0])


def test_kinds_do_not_mix_and_closing_answers_what_waits(model: Any, questions: Any) -> None:
    sizes: list[int] = []
    asked = [*questions("nothing", 2), *questions("picture", 1), *questions("nothing", 1, route=None)]
    asked += [*questions("clip", 1), *questions("nothing", 1, max_new_tokens=7)]
    with answering(model, sizes) as batcher:
        for question in asked:
            batcher.submit(question)
    assert all(question.result.done() for question in asked)
    assert sorted(sizes) == [1, 1, 1, 1, 2]


def test_what_is_wrong_with_one_is_not_the_others_fault(model: Any, questions: Any) -> None:
    sizes: list[int] = []
    asked = questions("nothing")  # the last has the longest prompt
    most = ask(model, [asked[2].sample], max_new_tokens=1)[0].prompt_tokens
    with answering(model, sizes, max_prompt_tokens=most) as batcher:
        for question in asked:
            batcher.submit(question)
        with pytest.raises(TPOError, match=f"more than max_length={most}"):
            asked[3].result.result(timeout=LONG_S)
        for question in asked[:3]:
            assert question.result.result(timeout=LONG_S).predictions
    assert sizes == [4, 1, 1, 1, 1]


def test_pieces_of_a_batch_are_the_answers(model: Any, questions: Any) -> None:
    asked = questions("picture")
    pieces: list[list[str]] = [[] for _ in asked]
    for number in (0, 2, 3):
        asked[number].on_text = pieces[number].append
    with answering(model, []) as batcher:
        for question in asked:
            batcher.submit(question)
    for question, own in zip(asked, pieces, strict=True):
        assert "".join(own) == (question.result.result().text if question.on_text else "")
        assert question.on_text is None or len(own) > 2


def test_what_was_streamed_and_is_not_the_answer_is_an_error(
    model: Any, questions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = questions("nothing", 1)[0]
    asked.on_text = [].append
    real = batching.answer
    monkeypatch.setattr(batching, "answer", lambda *a: [replace(found, text="other") for found in real(*a)])
    with answering(model, [], max_batch=1) as batcher:
        batcher.submit(asked)
    with pytest.raises(TPOError, match="of the answer 'other' .* was streamed"):
        asked.result.result()


def test_nobody_waits_for_what_is_abandoned(model: Any, questions: Any) -> None:
    sizes: list[int] = []
    waiting, running = questions("nothing", 2)
    with answering(model, sizes, max_batch=1, threads=1, window_s=0.0) as batcher:
        running.max_new_tokens = 900
        running.route = None
        running.on_text = lambda text: setattr(running, "abandoned", True)  # as soon as it began
        waiting.abandoned = True
        batcher.submit(waiting)
        batcher.submit(running)
    assert not waiting.result.done()
    assert sizes == [1]
    assert len(running.result.result().token_ids) < 10


def test_pieces_are_the_answer_where_a_tokenizer_cleans_spaces_up() -> None:
    vocabulary = {"<unk>": 0, "it": 1, "'": 2, "s": 3, ".": 4, "</s>": 5}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=True, eos_token="</s>")
    ids = [1, 2, 3, 4, 5]
    assert tokenizer.decode(ids[:2]) == "it '", "what the next token changes"
    assert tokenizer.decode(ids[:3]) == "it's"
    pieces: list[str] = []
    question = Question(Mock(), None, 8, pieces.append)
    streamer = batching._Streamer(tokenizer, {5}, [question])
    for token_id in ids:
        streamer.put(torch.tensor([token_id]))
    text = words(tokenizer, ids)
    question.say(text)
    assert "".join(pieces) == text == "it ' s ."
    found = [
        Prediction("region", 2, None, None, None, "", (0, 2)),
        Prediction("region", 4, None, None, None, "", (2, 4)),
    ]
    assert text_places(tokenizer, Answer(text, found, token_ids=ids)) == [(0, 4), (5, 8)]


def test_pieces_end_before_a_character_that_is_not_whole(model: Any, questions: Any) -> None:
    question = questions("nothing", 1)[0]
    pieces: list[str] = []
    question.on_text = pieces.append
    for text in ("a", "a b", "a b \ufffd", "a b \u00e9"):
        question.say(text.strip().rstrip("\ufffd"))
    assert "".join(pieces) == "a b \u00e9"
    assert pieces == ["a", " b", " ", "\u00e9"]
