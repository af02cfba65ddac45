"""One model serves many threads, each with the results that it has alone; and what fails leaves nothing in progress."""

from __future__ import annotations

import copy
import inspect
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import zoo

from tpo_plugin import HostError, TPOError, apply_tpo, remove_tpo
from tpo_plugin.positions import Counts
from tpo_plugin.testing import tiny_host
from tpo_plugin.tiny import tiny_batch

NUM_THREADS, NUM_CALLS = 8, 25


@pytest.fixture
def served() -> tuple[Any, dict[str, Callable[[], torch.Tensor]]]:
    """A model in evaluation mode, and the kinds of requests that a server has of it, each giving one tensor."""
    model, tokenizer = tiny_host()
    apply_tpo(model, tokenizer, heads=["region"])
    zoo.talkative(model)
    ask = tokenizer("where is the red circle", return_tensors="pt")
    chat = tokenizer("it stands here the the the the", return_tensors="pt")
    batch = tiny_batch(tokenizer, [model.tpo.token_ids["region"]] * 4, [])
    greedy = {"max_new_tokens": 6, "do_sample": False}

    def box(**options: Any) -> torch.Tensor:
        answers = model.tpo.generate(**ask, **greedy, route="region", **options).predictions
        return torch.cat([p.value for row in answers for p in row if not p.cut_off])

    def forward() -> torch.Tensor:
        out = model(**batch)
        assert model.tpo.last_output is out.tpo
        return out.tpo.predictions["region"]

    return model, {
        "box": box,
        "beams": partial(box, num_beams=2),
        "chat": lambda: model.generate(**chat, **greedy),
        "forward": torch.no_grad()(forward),
        "plain": torch.no_grad()(lambda: model(**chat).logits),
    }


def in_threads(work: Callable[[int], None], num: int = NUM_THREADS) -> None:
    """Runs `work(number)` in threads at once; the first error is raised."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_every_thread_has_its_own_results(served: Any) -> None:
    _, requests = served
    alone = {name: request() for name, request in requests.items()}

    def work(number: int) -> None:
        names = random.Random(number).choices(list(requests), k=NUM_CALLS)
        for name in names:
            torch.testing.assert_close(requests[name](), alone[name], rtol=1e-4, atol=1e-5, msg=name)

    in_threads(work)


def test_a_failing_thread_does_not_touch_the_others(served: Any) -> None:
    model, requests = served
    alone = {name: request() for name, request in requests.items()}

    def work(number: int) -> None:
        for _ in range(NUM_CALLS):
            if number % 2:
                with pytest.raises(TPOError, match="task_targets has"):
                    model(input_ids=torch.tensor([[1, 2]]), task_targets={"depth": {}})
            else:
                torch.testing.assert_close(requests["box"](), alone["box"], rtol=1e-4, atol=1e-5)

    in_threads(work, 4)
    assert model.tpo.call is None


def test_copies_work_and_have_nothing_in_progress(served: Any) -> None:
    model, requests = served
    expected = requests["plain"]()
    ids = {"input_ids": torch.tensor([[4, 5, 6]])}
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.tpo.hooks.model is copied
        assert copied.tpo.last_output is None
        with torch.no_grad():
            torch.testing.assert_close(copied(**ids).logits, model(**ids).logits, rtol=0, atol=0)
        answers = [m.tpo.generate(**ids, max_new_tokens=6, route="region", do_sample=False) for m in (copied, model)]
        (found,), (wanted,) = (answer.predictions for answer in answers)
        assert [p.to_json() for p in found] == [p.to_json() for p in wanted]
        assert found
        remove_tpo(copied)
    assert torch.equal(requests["plain"](), expected)


# -- whatever raises, nothing stays ------------------------------------------------------------------------------------


@contextmanager
def raising(owner: Any, name: str, error: BaseException) -> Iterator[None]:
    """While it lasts, `owner.name(…)` raises."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    before = vars(owner).get(name)
    setattr(owner, name, fail)
    try:
        yield
    finally:
        delattr(owner, name) if before is None else setattr(owner, name, before)


@pytest.mark.parametrize("error", [RuntimeError("stop here"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("where", ["begin", "embedding", "layer", "head of the host", "head", "loss", "end"])
@pytest.mark.parametrize("by", ["call", "forward", "generate", "tpo.generate", "training"])
def test_a_forward_that_fails_leaves_nothing_behind(by: str, where: str, error: BaseException) -> None:
    model, tokenizer = tiny_host()
    apply_tpo(model, tokenizer, heads=["region"])
    batch = tiny_batch(tokenizer, [model.tpo.token_ids["region"]] * 4, [])
    targets = {"region": {"boxes_xyxy": zoo.boxes(4)}}
    prompt = {"input_ids": batch["input_ids"][:, :3]}
    model.train(by == "training")

    def run() -> Any:
        if by == "tpo.generate":
            return model.tpo.generate(**prompt, max_new_tokens=4, do_sample=False, route="region").sequences
        if by == "generate":
            return model.generate(**prompt, max_new_tokens=4, do_sample=False)
        forward = model.forward if by == "forward" else model
        return forward(**batch, task_targets=targets).loss

    head = model.tpo.heads["region"]
    places = {
        "begin": (model.tpo.hooks, "_begin"),
        "embedding": (model.model.embed_tokens, "forward"),
        "layer": (model.model.layers[1], "forward"),
        "head of the host": (model.lm_head, "forward"),
        "head": (head, "forward"),
        "loss": (head, "loss"),
        "end": (model.tpo.hooks, "_finish"),
    }
    expected = run()
    never = {"generate": ("head", "loss"), "tpo.generate": ("loss",)}.get(by, ())
    if where in never:
        pytest.skip("not reached")
    with raising(*places[where], error), pytest.raises(type(error)):
        run()
    now = model.tpo.hooks.now
    assert (now.step, now.session, now.aside) == (None, None, False)
    assert torch.equal(run(), expected)


def test_counts_of_another_kind_are_refused_at_once() -> None:
    model, tokenizer = tiny_host()
    apply_tpo(model, tokenizer, heads=["region"])
    with pytest.raises(TPOError, match=r"task_counts is a dict; expected tpo_plugin.positions.Counts"):
        model.forward(input_ids=torch.tensor([[4, 5]]), task_counts={"assign": 1})
    out = model.forward(input_ids=torch.tensor([[4, 5]]), task_counts=Counts(1, 1, {"region": 1}))
    assert out.logits.shape == (1, 2, 64)


class DropsProcessors(type(tiny_host()[0])):  # type: ignore[misc]
    """Its generate does not hand on what it is given, as Janus's."""

    def generate(self, input_ids: Any, logits_processor: Any = None, **kwargs: Any) -> Any:
        return super().generate(input_ids, **kwargs)


def test_a_generate_that_drops_the_processors_is_worked_around_or_refused() -> None:
    options = {"max_new_tokens": 6, "do_sample": False, "route": "region"}
    expected = None
    for kind in (type(tiny_host()[0]), DropsProcessors):
        torch.manual_seed(0)
        model, tokenizer = tiny_host()
        model.__class__ = kind
        apply_tpo(model, tokenizer, heads=["region"])
        expected = expected or model.tpo.generate(torch.tensor([[4, 5]]), **options)
    with pytest.raises(HostError, match="DropsProcessors.generate leaves out the logits_processor"):
        model.tpo.generate(torch.tensor([[4, 5]]), **options, streamer=None)
    for _ in range(2):
        found = model.tpo.generate(torch.tensor([[4, 5]]), **options)
        assert torch.equal(found.sequences, expected.sequences)
        assert [p.to_json() for p in found.predictions[0]] == [p.to_json() for p in expected.predictions[0]]


def test_an_answer_without_its_routed_prediction_is_an_error() -> None:
    model, tokenizer = tiny_host()
    apply_tpo(model, tokenizer, heads=["region"])

    def at_once(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.ones(len(input_ids), dtype=torch.bool)

    options = {"max_new_tokens": 9, "do_sample": False, "stopping_criteria": [at_once]}
    with pytest.raises(TPOError, match=r"the answers of rows \[0, 1\] ended without its trigger"):
        model.tpo.generate(torch.tensor([[4, 5], [6, 7]]), **options, route="region")


# -- the vocabulary while TPO is on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("grown", [True, False])
def test_the_usual_resize_of_a_script_finds_its_work_done(grown: bool) -> None:
    model, tokenizer = tiny_host()
    known = inspect.signature(model.resize_token_embeddings).parameters
    quick = {"mean_resizing": False} if "mean_resizing" in known else {}  # transformers 4.45 draws the new rows anyway
    if grown:
        model.resize_token_embeddings(len(tokenizer), **quick)
    rows = len(model.lm_head.weight)
    before = model.lm_head.weight.detach().clone()
    apply_tpo(model, tokenizer, heads=["region"])
    needed, there = max(model.tpo.token_ids["region"]) + 2, len(model.lm_head.weight)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[4, 5, 6]])).logits
    assert model.resize_token_embeddings(len(tokenizer), **quick) is model.get_input_embeddings()
    assert model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=32) is model.get_input_embeddings()
    with torch.no_grad():
        assert torch.equal(model(input_ids=torch.tensor([[4, 5, 6]])).logits, expected)
    for size in (needed - 2, there + 1):
        with pytest.raises(TPOError, match=rf"resize_token_embeddings\({size}\): the vocabulary has {there} rows"):
            model.resize_token_embeddings(size)
    remove_tpo(model)
    assert len(model.lm_head.weight) == rows
    assert torch.equal(model.lm_head.weight, before)
    model.resize_token_embeddings(rows + 8, **quick)
    assert len(model.lm_head.weight) == rows + 8
