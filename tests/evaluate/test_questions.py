"""Which questions an evaluation asks, with which media, in which batches; and what it does with what fails."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from registered import registered

import tpo_plugin as tpo
from tpo_plugin import asking
from tpo_plugin.data import RecordFormat, Records
from tpo_plugin.errors import HostError
from tpo_plugin.evaluate.answering import Asked, Line
from tpo_plugin.evaluate.questions import Question, batches_of, list_questions, question_of
from tpo_plugin.evaluate.scoring import Scorer, Split, scored
from tpo_plugin.tiny import tiny_host


def talk(*turns: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(turns)]


RECORDS: list[dict[str, Any]] = [
    {
        "image": ["a.png", "b.png", "c.png"],
        "conversations": talk(
            "<image>\nwhat is it?", "a dog", "and <image>, <image>?", "two cats", "which is the larger?", "the dog"
        ),
    },
    {"video": "d.mp4", "conversations": talk("<image>\nwhat happens?", "nothing")},
    {"conversations": [{"from": "system", "value": "be short"}, *talk("who are you?", "a model", "really?", "yes")]},
]


@pytest.fixture(scope="module")
def records() -> Records:
    return Records(RECORDS, RecordFormat({}, {}), media_root="/media")


def names(paths: Any) -> list[str]:
    return [Path(path).name for path in paths]


def test_a_question_comes_with_what_was_said_before_or_alone(records: Records) -> None:
    second = question_of(records[0], 3, alone=False)
    assert [turn.text for turn in second.turns] == [
        "<image>\nwhat is it?", "a dog", "and <image>, <image>?", "two cats"
    ]  # fmt: skip
    assert names(second.images) == ["a.png", "b.png", "c.png"]
    alone = question_of(records[0], 3, alone=True)
    assert [turn.text for turn in alone.turns] == ["and <image>, <image>?", "two cats"]
    assert names(alone.images) == ["b.png", "c.png"]  # those that it shows itself
    third = question_of(records[0], 5, alone=True)
    assert third.turns[0].text == "<image>\n<image>\n<image>\nwhich is the larger?"
    assert names(third.images) == ["a.png", "b.png", "c.png"]
    assert names(question_of(records[0], 1, alone=False).images) == ["a.png"]
    assert [t.role for t in question_of(records[2], 4, alone=True).turns] == ["system", "user", "assistant"]
    assert names(question_of(records[1], 1, alone=True).videos) == ["d.mp4"]


def test_every_answer_is_a_question(records: Records) -> None:
    found = list_questions([records, records], alone=False)
    assert [(q.number, q.source, q.index, q.turn) for q in found] == [
        (0, 0, 0, 1), (1, 0, 0, 3), (2, 0, 0, 5), (3, 0, 1, 1), (4, 0, 2, 2), (5, 0, 2, 4),
        (6, 1, 0, 1), (7, 1, 0, 3), (8, 1, 0, 5), (9, 1, 1, 1), (10, 1, 2, 2), (11, 1, 2, 4),
    ]  # fmt: skip
    assert [q.media for q in found[:5]] == [(True, False)] * 3 + [(False, True), (False, False)]
    assert len(list_questions([records], alone=False, limit=2)) == 2
    assert not list_questions([records], alone=False, route="region")


def test_batches_are_of_like_media_and_length(records: Records) -> None:
    batches = batches_of(list_questions([records, records], alone=False), 2)
    assert sorted(q.number for batch in batches for q in batch) == list(range(12))
    for batch in batches:
        assert len({q.media for q in batch}) == 1
        assert [q.length for q in batch] == sorted(q.length for q in batch)
    assert max(map(len, batches)) == 2


def test_a_batch_that_is_refused_is_asked_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(model: Any, samples: Any, **options: Any) -> Any:
        if len(samples) > 1 or samples[0] == "bad":
            raise tpo.TPOError(f"{len(samples)} are refused")
        return [asking.Answer(samples[0], [])]

    monkeypatch.setattr(asking, "ask", refuses)
    found = asking.ask_each(None, ["a", "bad", "b"], max_new_tokens=1)  # type: ignore[list-item]
    assert [getattr(f, "text", str(f)) for f in found] == ["a", "1 are refused", "b"]

    def broken(model: Any, samples: Any, **options: Any) -> Any:
        raise HostError("no hook")

    monkeypatch.setattr(asking, "ask", broken)
    with pytest.raises(HostError):
        asking.ask_each(None, ["a", "b"], max_new_tokens=1)  # type: ignore[list-item]


# -- scores ------------------------------------------------------------------------------------------------------------


class Number(tpo.TaskHead):
    """Its metric is its loss, of which nothing worst is known."""

    fields = ("numbers",)

    def __init__(self, config: tpo.HeadConfig, hidden_size: int) -> None:
        super().__init__()
        self.proj = tpo.Linear(hidden_size, 1)

    def forward(self, e_ND: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"numbers": self.proj(e_ND)}

    def loss(self, outputs: Any, targets: Any, num_targets: Any) -> dict[str, torch.Tensor]:
        return {"loss_number": (outputs["numbers"] - targets["numbers"]).abs().sum() / num_targets}


def test_what_a_loss_does_not_know_of_missing_answers_is_told() -> None:
    with registered("number", Number):
        model, tokenizer = tiny_host()
        tpo.apply_tpo(model, tokenizer, heads=["number"])
        task = {"head": "number", "numbers": [2.0]}
        turns = talk("which?", "<number>")
        source = Records([{"conversations": turns, "tasks": [task]}] * 2, model.tpo)
        split = Split(model.tpo)
        given: list[dict[str, Any]] = [{"number": ({"numbers": torch.tensor([[2.5], [9.0]])}, 2)}, {}]
        for index, outputs in enumerate(given):
            line = Line("a", "a", 1, wants=["number"], called=["number"] if outputs else [])
            asked = Asked(index, line, outputs)
            found = scored(model.tpo, source, Question(index, 0, index, 1), asked, alone=False)
            split.add(line, found, None)
        result = split.compute(routed=False)["heads"]["number"]
        assert (result["wanted"], result["given"], result["emission"]) == (2, 1, 0.5)
        assert result["of_given"] == {"loss_number": 0.5}  # a second token is not scored
        assert "metrics" not in result
        assert line.quality == {}


def test_a_truth_that_cannot_be_read_counts_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with registered("number", Number):
        model, tokenizer = tiny_host()
        tpo.apply_tpo(model, tokenizer, heads=["number"])
        source = Records(
            [{"conversations": talk("which?", "<number>"), "tasks": [{"head": "number", "numbers": [2.0]}]}], model.tpo
        )

        def unreadable(tasks: Any) -> Any:
            raise tpo.MediaError("mask.png: is no picture")

        codec = SimpleNamespace(num_tokens=lambda task: 1, collate_truth=unreadable)
        monkeypatch.setitem(model.tpo.codecs, "number", codec)
        line = Line("a", "a", 1, wants=["number"])
        found = scored(model.tpo, source, Question(0, 0, 0, 1), Asked(0, line, {}), alone=False)
        assert found is None
        assert line.failure == "cannot be scored: mask.png: is no picture"


def asked_of(tokens: int, wants: list[str], **outputs: Any) -> Asked:
    return Asked(0, Line("a", "a", 1, wants=wants), {"region": (outputs, tokens)} if tokens else {})


BOXES = [[0.0, 0.0, 0.5, 0.5], [0.1, 0.1, 0.6, 0.6], [0.2, 0.2, 0.7, 0.7]]


@pytest.mark.parametrize("tasks", [[BOXES], [BOXES[:1], BOXES[1:]], [BOXES[:2], BOXES[2:]]])
def test_the_kth_token_is_for_the_kth_box_whatever_the_tasks(tasks: list[Any]) -> None:
    model, tokenizer = tiny_host()
    tpo.apply_tpo(model, tokenizer, heads=["region"])
    said = " and ".join("<region>" for _ in tasks)
    record = {"conversations": talk("where?", said), "tasks": [{"head": "region", "boxes": boxes} for boxes in tasks]}
    source = Records([record], model.tpo)
    for given in range(5):
        found = torch.tensor([*BOXES, BOXES[0]][:given])
        asked = asked_of(given, ["region"], boxes_xyxy=found)
        (one,) = (scored(model.tpo, source, Question(0, 0, 0, 1), asked, alone=False) or {}).values()
        assert (one.num_given, one.num_missed) == (min(given, 3), max(3 - given, 0))
        assert asked.line.quality["region"] == pytest.approx(min(given, 3) / 3)


def test_a_task_whose_tokens_share_a_target_is_given_whole_or_not() -> None:
    class Pair(Number):
        def num_tokens(self, task: dict[str, Any]) -> int:
            return 2

    with registered("number", Pair):
        model, tokenizer = tiny_host()
        tpo.apply_tpo(model, tokenizer, heads=["number"])
        tasks = [{"head": "number", "numbers": [2.0]}] * 2
        source = Records([{"conversations": talk("?", "<number> <number>"), "tasks": tasks}], model.tpo)
        asked = Asked(0, Line("a", "a", 1, wants=["number"]), {"number": ({"numbers": torch.ones(3, 1)}, 3)})
        (one,) = (scored(model.tpo, source, Question(0, 0, 0, 1), asked, alone=False) or {}).values()
        assert (one.num_given, one.num_missed) == (2, 2)


def test_a_scorer_sees_no_question_that_wants_other_heads() -> None:
    model, tokenizer = tiny_host()
    tpo.apply_tpo(model, tokenizer, heads=["region"])
    source = Records([{"conversations": talk("where?", "there")}], model.tpo)
    scorer = Scorer.of(model.tpo, "grefcoco")
    seen = [
        scorer.answer(model.tpo, source, Question(0, 0, 0, 1), asked_of(0, wants), alone=False) is not None
        for wants in ([], ["region"], ["mask"], ["mask", "region"])
    ]
    assert seen == [True, True, False, True]
