"""Questions that arrive together are answered as one batch, by several threads on one model."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from tpo_plugin.asking import Answer, ask, end_ids
from tpo_plugin.data import Sample
from tpo_plugin.errors import HostError
from tpo_plugin.generation.answers import words
from tpo_plugin.serve.limits import Limits

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Question:
    """A sample that waits for its answer."""

    sample: Sample
    route: str | None
    max_new_tokens: int
    on_text: Callable[[str], None] | None = None
    """Gets each piece of the answer's text as soon as it is certain."""
    result: Future[Answer] = field(default_factory=Future)
    abandoned: bool = False
    """Whether nobody waits for the answer any more."""
    arrived: float = field(default_factory=time.monotonic)
    sent: str = ""
    """The text that `on_text` got."""

    @property
    def kind(self) -> tuple[Any, ...]:
        """Questions of one kind may share a batch."""
        lengths = tuple(sorted({len(clip.frames) for clip in self.sample.videos}))
        return self.route, self.max_new_tokens, bool(self.sample.images), lengths

    def say(self, text: str) -> None:
        """Hands on what of an answer's text is new."""
        if self.on_text is not None and len(text) > len(self.sent) and text.startswith(self.sent):
            self.on_text(text[len(self.sent) :])
            self.sent = text


class Batcher:
    """Threads that answer questions until it is closed. `on_batch` gets the size of each batch."""

    def __init__(self, model: Any, limits: Limits, on_batch: Callable[[int], None] = lambda size: None) -> None:
        self.model, self.limits, self.on_batch = model, limits, on_batch
        self._waiting: list[Question] = []
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=f"answers {n}") for n in range(limits.threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, question: Question) -> None:
        """Has the question answered: its `result` gets the answer or what was raised."""
        with self._changed:
            self._waiting.append(question)
            self._changed.notify_all()

    def close(self) -> None:
        """Waits until everything that was submitted is answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while questions := self._next():
            self._answer(questions)

    def _next(self) -> list[Question]:
        """The oldest question with those of its kind, once there are enough or it has waited; none where closed."""
        with self._changed:
            while True:
                self._waiting = [question for question in self._waiting if not question.abandoned]
                if not self._waiting and self._closed:
                    return []
                if not self._waiting:
                    self._changed.wait()
                    continue
                first = self._waiting[0]
                alike = [question for question in self._waiting if question.kind == first.kind]
                wait_s = first.arrived + self.limits.window_s - time.monotonic()
                if len(alike) >= self.limits.max_batch or wait_s <= 0 or self._closed:
                    taken = alike[: self.limits.max_batch]
                    self._waiting = [question for question in self._waiting if question not in taken]
                    return taken
                self._changed.wait(wait_s)

    def _answer(self, questions: Sequence[Question]) -> None:
        """Where a batch fails, each is asked alone: what is wrong with one is not the others' fault."""
        self.on_batch(len(questions))
        try:
            answers = answer(self.model, questions, self.limits.max_prompt_tokens)
        except Exception as error:
            if len(questions) == 1:
                questions[0].result.set_exception(error)
                return
            logger.info("a batch of %d failed, each is asked alone: %s", len(questions), error)
            for question in questions:
                if not question.abandoned:
                    self._answer([question])
            return
        for question, given in zip(questions, answers, strict=True):
            question.say(given.text)
            if question.sent and question.sent != given.text:
                question.result.set_exception(HostError(f"of the answer {given.text!r} {question.sent!r} was streamed"))
            else:
                question.result.set_result(given)


def answer(model: Any, questions: Sequence[Question], max_prompt_tokens: int) -> list[Answer]:
    """The answers to questions of one kind. Ends early where all are abandoned."""
    options: dict[str, Any] = {"stopping_criteria": StoppingCriteriaList([_Abandoned(questions)])}
    if any(question.on_text is not None for question in questions):
        options["streamer"] = _Streamer(model.tpo.tokenizer, end_ids(model), questions)
    return ask(
        model,
        [question.sample for question in questions],
        route=questions[0].route,
        max_new_tokens=questions[0].max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        **options,
    )


class _Abandoned(StoppingCriteria):
    """Ends a generation that nobody waits for any more."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ends = all(question.abandoned for question in self.questions)
        return torch.full((len(input_ids),), ends, dtype=torch.bool, device=input_ids.device)


class _Streamer(BaseStreamer):
    """Tells each question of a batch the text of its answer, as far as no later token changes it."""

    def __init__(self, tokenizer: Any, ends: set[int], questions: Sequence[Question]) -> None:
        self.tokenizer, self.ends, self.questions = tokenizer, ends, questions
        self.ids: list[list[int]] = [[] for _ in questions]

    def put(self, value: Tensor) -> None:
        """Gets the prompt [B, T] once, then the tokens [B] of each step."""
        if value.dim() > 1:
            return
        for question, ids, token_id in zip(self.questions, self.ids, value.tolist(), strict=True):
            if question.on_text is None or (ids and ids[-1] in self.ends):
                continue
            ids.append(token_id)
            question.say(words(self.tokenizer, ids).rstrip("\ufffd"))

    def end(self) -> None:
        """Nothing: the answer itself says the rest."""
