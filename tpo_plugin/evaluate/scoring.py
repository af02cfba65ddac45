"""What answers are worth: how often heads were called, the heads' own metrics, agreement of plain answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device

from tpo_plugin.codec import Codec
from tpo_plugin.data.records import Records
from tpo_plugin.errors import MediaError, TPOError, did_you_mean
from tpo_plugin.evaluate.answering import Asked, Line
from tpo_plugin.evaluate.questions import Question, question_of
from tpo_plugin.head import Benchmark, HeadAnswer, HeadMetrics
from tpo_plugin.training.free import covered, rates

CONVENTIONS = {
    "heads": "a head's metrics are over all that the records want of it: what an answer does not give counts as the "
    "worst prediction; the k-th task token of an answer is for the k-th that the record wants, further ones are not "
    "scored. Where a head has no target of its own for each token of a task, a task counts whole: one that is given in "
    "part is missing. A metric under `of_given` is over what was given alone: of a loss nothing worst is known",
    "emission": "share of the answered questions that want a head in whose answer it is called, with nothing forced",
    "false_triggers": "share of the answered questions that do not want a head in whose answer it is called",
    "chat": "share of the questions whose answer calls no head that are answered as the record has it, to the letter",
    "failed": "a question that cannot be asked, as where its medium cannot be read, counts as not answered in all "
    "metrics and in chat, and not in emission and false_triggers; one whose truth cannot be read counts nowhere",
}
"""What the numbers mean, for `results.json`."""


class Split:
    """The scores of one file of questions, or of all."""

    def __init__(self, tpo: Any, scorer: Scorer | None = None) -> None:
        self.tpo, self.scorer = tpo, scorer
        self.answers: list[HeadAnswer] = []
        """What the scorer scores."""
        self.lines: list[Line] = []
        self.metrics: dict[str, HeadMetrics] = {name: head.metrics() for name, head in tpo.heads.items()}
        self.counts: Counter[tuple[str, str]] = Counter()
        """By head: "questions", "wanted" and "given" task tokens, "unscored" ones, for which nothing worst is known."""

    def add(self, line: Line, scored: Mapping[str, Scored] | None, answer: HeadAnswer | None) -> None:
        """Adds a question's line, by head that it wants what is measured, and what the scorer is to see.

        None where its truth cannot be read, or the scorer is to see nothing.
        """
        self.lines.append(line)
        self.answers += [] if answer is None else [answer]
        for name, found in (scored or {}).items():
            self.counts[name, "questions"] += 1
            self.counts[name, "wanted"] += found.num_given + found.num_missed
            self.counts[name, "given"] += found.num_given
            if not found.add_to(self.metrics[name]):
                self.counts[name, "unscored"] += found.num_missed

    def compute(self, *, routed: bool) -> dict[str, Any]:
        """Plain numbers; rates and metrics only where there is something to take them of."""
        answered = [line for line in self.lines if not line.failure]
        plain = [line for line in self.lines if not line.wants]
        called = (
            {} if routed else {k.removeprefix("free_"): v for k, v in rates(answered, list(self.tpo.heads)).items()}
        )
        found: dict[str, Any] = {"questions": len(self.lines), "failed": len(self.lines) - len(answered)}
        frames = [number for line in self.lines for number in line.frames]
        found |= {"frames": [min(frames), max(frames)]} if frames else {}
        found |= {"false_triggers": called["false_triggers"]} if "false_triggers" in called else {}
        if plain:
            agreed = sum(line.text == line.reference and not line.failure for line in plain)
            found["chat"] = {"questions": len(plain), "agreement": agreed / len(plain)}
        if self.scorer is not None:
            numbers = self.scorer.benchmark.score(self.answers)
            found["benchmark"] = {"name": self.scorer.name, "head": self.scorer.head, "scores": numbers}
        found["heads"] = {}
        for name, metric in self.metrics.items():
            of_head: dict[str, Any] = {
                key: called[f"{name}_{key}"] for key in ("emission", "false_triggers") if f"{name}_{key}" in called
            }
            if self.counts[name, "questions"]:
                of_head |= {key: self.counts[name, key] for key in ("questions", "wanted", "given")}
                key = "of_given" if self.counts[name, "unscored"] else "metrics"
                of_head[key] = metric.compute()
            if of_head:
                found["heads"][name] = of_head
        return found


@dataclass(frozen=True)
class Scorer:
    """A benchmark that the run's heads have."""

    name: str
    head: str
    benchmark: Benchmark

    @classmethod
    def of(cls, tpo: Any, name: str) -> Scorer:
        """By its name, or HEAD.NAME; raises `TPOError` for one that no head has, or several."""
        found: dict[str, list[Scorer]] = {}
        for head in tpo.heads:
            for key, benchmark in tpo.heads[head].benchmarks().items():
                for said in (key, f"{head}.{key}"):
                    found.setdefault(said, []).append(cls(key, head, benchmark))
        if name not in found:
            raise TPOError(f"benchmark is {name!r}, which no head of this run has{did_you_mean(name, found)}")
        if len(found[name]) > 1:
            several = " or ".join(f"{scorer.head}.{name}" for scorer in found[name])
            raise TPOError(f"benchmark is {name!r}, which several heads of this run have; give {several}")
        return found[name][0]

    def answer(self, tpo: Any, records: Records, question: Question, asked: Asked, *, alone: bool) -> HeadAnswer | None:
        """What it sees of an answer; None of a record that breaks the format, or that wants other heads alone."""
        line = asked.line
        if question.turn < 0 or (line.wants and self.head not in line.wants):
            return None
        record = question_of(records[question.index], question.turn, alone=alone)
        head, (outputs, number) = tpo.heads[self.head], asked.outputs.get(self.head, ({}, 0))
        own = head.score(outputs) if number else None
        triggers = [p["score"] for p in line.predictions if p["head"] == self.head]
        return HeadAnswer(
            values=list(head.postprocess(outputs)) if number else [],
            scores=(triggers + [None] * number)[:number] if own is None else own.tolist(),
            tasks=[task for task in record.turns[-1].tasks if task["head"] == self.head],
            question=line.question,
            text=line.text,
            reference=line.reference,
            medium=str(next(iter((*record.images, *record.videos)), "")),
            width=line.width,
            height=line.height,
            duration_s=line.duration_s,
        )


@dataclass
class Scored:
    """What a head gave for what a record wants of it."""

    values: dict[str, Any]
    """Its outputs for `num_given` task tokens."""
    truth: dict[str, Any]
    """Of them."""
    num_given: int
    missing: dict[str, Any]
    """The truth of the others."""
    num_missed: int

    def add_to(self, metric: HeadMetrics) -> bool:
        """Whether all of it could be added."""
        if self.num_given:
            metric.update(self.values, self.truth)
        return not self.num_missed or metric.missed(self.missing)


@torch.no_grad()
def scored(tpo: Any, records: Records, question: Question, asked: Asked, *, alone: bool) -> dict[str, Scored] | None:
    """By head that the record wants what was given of it; its `quality` is noted in the line.

    None where the truth cannot be read, or measured against: the line has a failure then.
    """
    if question.turn < 0:
        return {}
    found = {}
    said = question_of(records[question.index], question.turn, alone=alone).turns[-1]
    device = next(tpo.parameters()).device
    try:
        for name in asked.line.wants:
            tasks = [task for task in said.tasks if task["head"] == name]
            found[name] = one = _of_head(tpo, name, asked, tasks)
            for part in ("values", "truth", "missing"):
                setattr(one, part, send_to_device(getattr(one, part), device))
            metric = tpo.heads[name].metrics()
            one.add_to(metric)
            quality = metric.quality()
            if quality is not None:
                asked.line.quality[name] = float(quality)
    except (MediaError, TPOError) as error:
        asked.line.failure = asked.line.failure or f"cannot be scored: {error}"
        asked.line.quality = {}
        return None
    return found


def _of_head(tpo: Any, name: str, asked: Asked, tasks: Sequence[dict[str, Any]]) -> Scored:
    codec = tpo.codecs[name]
    outputs, num_given = asked.outputs.get(name, ({}, 0))
    num_tasks, num_tokens = covered(codec, num_given, tasks)
    given, missing = list(tasks[:num_tasks]), list(tasks[num_tasks:])
    truth, missed = (codec.collate_truth(some) if some else {} for some in (given, missing))
    num_missed = sum(codec.num_tokens(task) for task in missing)
    more = min(num_given - num_tokens, num_missed)
    if more and _each_token_has_its_own(codec, missed, num_missed):  # a task that is given in part
        whole = codec.collate_truth(list(tasks))
        num_tokens, num_missed = num_tokens + more, num_missed - more
        parts = slice(num_tokens), slice(num_tokens, None)
        truth, missed = ({key: value[part] for key, value in whole.items()} for part in parts)
    values = {key: value[:num_tokens] for key, value in outputs.items()} if num_tokens else {}
    return Scored(values, truth, num_tokens, missed, num_missed)


def _each_token_has_its_own(codec: Codec, truth: Mapping[str, Any], num_tokens: int) -> bool:
    """Whether truth has a row of each tensor for each of its task tokens, as that of boxes has."""
    rows = [value.shape[:1] if torch.is_tensor(value) else () for value in truth.values()]
    return codec.num_targets(dict(truth)) == num_tokens and set(rows) == {(num_tokens,)}
