"""What speaks against a run before it starts: settings and data with which no training was seen to succeed.

Each is a warning, for a run may know better. The numbers are those of trainings with this plugin: of the demo's host of
half a million parameters, and of a language model of 135 million as a LLaVA-OneVision's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tpo_plugin.data import Records
from tpo_plugin.data.records import MEDIA_TAG
from tpo_plugin.errors import RecordError
from tpo_plugin.training.config import StageConfig, TrainConfig

SourceKey = tuple[str, str | None]

LOOKED_AT = 500
"""Records of a file, evenly spread over it."""
FEW_QUESTIONS = 50
FEW_STEPS_OF_TRIGGERS = 20
"""At least so many steps passed until triggers came, with LoRA at 1e-3 to 3e-3."""
FEW_STEPS_OF_HEADS = 200
"""Boxes stood on the best constant one for 35 to 95 steps of their loss alone on pictures, and for 150 to more than 570
beside other losses."""
RATES = {"lora": (1e-5, 1e-2), "heads": (1e-5, 1e-2), "tokens": (1e-5, 1e-2), "triggers": (1e-5, 1e-2)}
"""Of these parts; seen were 2e-4 to 5e-3, and the paper's are 2e-5 and 1e-4."""
HOST_RATES = (1e-7, 1e-3)
"""Of the host's own parts."""


@dataclass
class Found:
    """What the answers of some records call, of all of them if but a sample was looked at."""

    calls: Counter[str] = field(default_factory=Counter)
    """By head: answers that call it."""
    plain: float = 0.0
    """Answers that call none."""
    openings: set[tuple[str, str]] = field(default_factory=set)
    """Heads with the first three words of a question for them."""

    def __add__(self, other: Found) -> Found:
        return Found(self.calls + other.calls, self.plain + other.plain, self.openings | other.openings)


def outlook(config: TrainConfig, names: Sequence[str], sources: Mapping[SourceKey, Records]) -> list[str]:
    """A sentence for each thing that speaks against these stages of a run; `sources` are their opened records."""
    stages = {name: config.stages[name] for name in names}
    keys = {name: dict.fromkeys((source.file, source.media) for source in stage.data) for name, stage in stages.items()}
    looked = {key: _look(sources[key]) for key in dict.fromkeys(key for of_stage in keys.values() for key in of_stage)}
    found = {name: sum((looked[key] for key in of_stage), Found()) for name, of_stage in keys.items()}
    steps = {name: _steps(stage, sources) for name, stage in stages.items()}
    sentences = [sentence for name, stage in stages.items() for sentence in _of_stage(name, stage, found[name])]
    assigning = [name for name, stage in stages.items() if _has_loss(stage, "assign") and found[name].calls]
    number = sum(steps[name] for name in assigning)
    if assigning and number < FEW_STEPS_OF_TRIGGERS:
        sentences.append(
            f"triggers train for {number} steps in all; they were never seen to come in free answers before step "
            f"{FEW_STEPS_OF_TRIGGERS}: give more steps or epochs to {', '.join(assigning)}"
        )
    together = sum(looked.values(), Found())
    for head in together.calls:
        training = [name for name, stage in stages.items() if _has_loss(stage, head) and found[name].calls[head]]
        number = sum(steps[name] for name in training)
        sentences += _of_head(head, together, number if training else None)
    return sentences


def _look(records: Records) -> Found:
    chosen = range(0, len(records), -(-len(records) // LOOKED_AT))
    found = Found()
    for index in chosen:
        try:
            turns = records[index].turns
        except RecordError:  # of a large file: training skips and counts it
            continue
        question = ""
        for turn in turns:
            if turn.role != "assistant":
                question = MEDIA_TAG.sub("", turn.text)
                continue
            heads = {task["head"] for task in turn.tasks}
            found.calls.update(heads)
            found.plain += not heads
            found.openings |= {(head, " ".join(question.split()[:3])) for head in heads}
    share = len(chosen) / len(records)
    return Found(
        Counter({head: round(n / share) for head, n in found.calls.items()}), found.plain / share, found.openings
    )


def _steps(stage: StageConfig, sources: Mapping[SourceKey, Records]) -> int:
    if stage.steps is not None:
        return stage.steps
    samples = sum(source.weight * len(sources[source.file, source.media]) for source in stage.data)
    return round(stage.epochs * samples / stage.batch_size)


def _has_loss(stage: StageConfig, kind: str) -> bool:
    return stage.losses is None or kind in stage.losses


def _of_stage(name: str, stage: StageConfig, found: Found) -> Iterator[str]:
    for part, rate in stage.learning_rates.items():
        low, high = RATES.get(part.partition(".")[0], HOST_RATES)
        if not low <= rate <= high:
            yield (
                f"stages.{name}.learning_rates.{part}: {rate:g} is far from the rates that were seen to work, {low:g} "
                f"to {high:g}"
            )
    if not _has_loss(stage, "assign"):
        return
    if not found.calls:
        yield f"stages.{name}.data: no answer calls a head, so no trigger is learnt in this stage"
    elif not found.plain:
        yield (
            f"stages.{name}.data: each answer calls a head, so the model learns to call one whatever it is asked; add "
            "ordinary conversation, about as many records as with tasks"
        )


def _of_head(head: str, found: Found, steps: int | None) -> Iterator[str]:
    if found.calls[head] < FEW_QUESTIONS:
        yield (
            f"{head}: the data has {found.calls[head]} answers for it, and fewer than {FEW_QUESTIONS} are learnt by "
            "heart: add records"
        )
    openings = sorted(opening for name, opening in found.openings if name == head)
    if len(openings) == 1 and found.calls[head] > 1:
        yield (
            f"{head}: all questions for it begin with {openings[0]!r}, and one in other words may be answered without "
            "it: vary how the records ask"
        )
    if steps is None:
        yield f"{head}: no stage has both its loss and answers that call it, so it stays as it is"
    elif steps < FEW_STEPS_OF_HEADS:
        yield (
            f"{head}: its loss trains for {steps} steps in all; boxes stood on the best constant one for 35 to 95 "
            "steps of their loss alone on pictures, and for 150 to more than 570 beside other losses"
        )
