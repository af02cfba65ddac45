"""What a model says in an evaluation when nothing helps it: questions of the evaluation data, answered with no trigger,
and no word of the record, forced.

`assign_accuracy` is teacher-forced: it looks for the trigger behind the record's own words. A model may score 1.0 there
and never call a head, because its own words lead elsewhere. The figures of here are named `free_…`.

Suffix: V vocabulary.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn
from transformers import LogitsProcessor

from tpo_plugin import sharding
from tpo_plugin.atomic import replace_file
from tpo_plugin.codec import Codec
from tpo_plugin.data.records import MEDIA_TAG, Record
from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.generation.answers import words
from tpo_plugin.generation.generate import GenerateOutput

if TYPE_CHECKING:
    from tpo_plugin.data.dataset import Sample
    from tpo_plugin.model import TaskPreferenceModel

logger = logging.getLogger(__name__)

FILE = "free_answers.jsonl"
"""In the folder of a stage: an `FreeAnswer` a line, of all its evaluations."""
ACCURATE, RARE = 0.9, 0.5
"""A teacher-forced accuracy of at least the one, and an emission below the other, part."""


@dataclass(frozen=True)
class Trigger:
    """How likely the trigger of a head that a record wants was."""

    in_record: float
    """Its probability behind the record's own words; of several triggers, whichever heads', the geometric mean."""
    in_answer: float
    """The highest that it had in the free answer, 0 to 1."""
    behind: str
    """The answer's text before the place where it was that likely."""


@dataclass(frozen=True)
class FreeAnswer:
    """The greedy answer to one question in one evaluation."""

    evaluation: str
    """Prefix of its metrics: "eval"."""
    step: int
    """Optimizer steps before it."""
    record: str
    """File and line that the question is of."""
    question: str
    answer: str
    """What was said, without the tokens of heads."""
    wants: list[str]
    """Heads that the record's answer calls."""
    called: list[str]
    """Heads that this answer calls."""
    triggers: dict[str, Trigger]
    """By head that was wanted and not called."""


def ask(trainer: Any, dataset: Any, prefix: str, forced: dict[str, float]) -> dict[str, float]:
    """Asks `trainer.eval_generations` questions of a dataset of `Sample`, a share on each rank; the metrics by name.

    Where parameters are split, each rank asks all of them, and the first one's answers count.

    For each head "free_HEAD_emission", the share of the questions whose record wants it that it was called on;
    "free_HEAD_false_triggers", that of the others; "free_HEAD_METRIC", its metrics over what it was asked and answered.
    "free_false_triggers" is the share of the questions that want no head on which any was called, "free_questions" the
    number of all. The answers are written to `FILE`; a warning says where they part from what the teacher-`forced`
    evaluation found. Random states are the caller's to keep. Collective.
    """
    if not trainer.eval_generations:
        return {}
    tpo, accelerator = trainer.tpo, trainer.accelerator
    parts = [_answers(trainer, dataset, prefix)]
    if accelerator.num_processes > 1:
        parts = gather_object(parts)
    refused = next((reason for _, reason in parts if reason), "")
    if refused:
        _say_once(trainer, refused)
        return {}
    found = sorted((item for items, _ in parts for item in items), key=lambda item: item[0])
    answers = [answer for _, answer, _ in found]
    metrics = {name: head.metrics() for name, head in tpo.heads.items()}
    for *_, heads in found:
        for name, given in send_to_device(heads, accelerator.device).items():
            metrics[name].update(*given)
    values = rates(answers, list(tpo.heads))
    for name, metric in metrics.items():
        values |= {f"free_{name}_{key}": value for key, value in metric.compute().items()}
    if trainer.is_world_process_zero():
        write(Path(trainer.args.output_dir) / FILE, answers, prefix, trainer.state.global_step)
        for sentence in parted(forced | values, list(tpo.heads)):
            logger.warning("%s, step %d: %s", prefix, trainer.state.global_step, sentence)
    return values


def _answers(trainer: Any, dataset: Any, prefix: str) -> tuple[list[tuple[int, FreeAnswer, dict[str, Any]]], str]:
    """This rank's share: (number of the question, answer, outputs and targets by head), and why there is none."""
    sharding.at_rest(trainer.model)
    split = trainer.tpo.is_split
    accelerator, number = trainer.accelerator, min(trainer.eval_generations, len(dataset))
    chosen = range(accelerator.process_index, number, accelerator.num_processes)
    if split:  # the ranks generate in step, the same media at a time: each of them asks everything
        chosen = range(number)
    with evaluating(trainer.model):
        try:
            found = [(index, *_asked(trainer, s, prefix, split)) for index, s in _questions(dataset, number, chosen)]
            return found if accelerator.is_main_process or not split else [], ""
        except HostError as error:
            return [], str(error)


class Called(Protocol):
    """What `rates` looks at."""

    @property
    def wants(self) -> Collection[str]:
        """Heads that the record's answer calls."""

    @property
    def called(self) -> Collection[str]:
        """Heads that this answer calls."""


def rates(answers: Sequence[Called], heads: Sequence[str]) -> dict[str, float]:
    """Emission and false triggers of `ask`, each where there is a question to take it of."""
    values: dict[str, float] = {"free_questions": len(answers)}
    plain = [bool(a.called) for a in answers if not a.wants]
    values |= {"free_false_triggers": sum(plain) / len(plain)} if plain else {}
    for name in heads:
        for key, wanted in (("emission", True), ("false_triggers", False)):
            called = [name in a.called for a in answers if (name in a.wants) == wanted]
            values |= {f"free_{name}_{key}": sum(called) / len(called)} if called else {}
    return values


def parted(metrics: dict[str, float], heads: Sequence[str]) -> list[str]:
    """For each head whose teacher-forced accuracy and free emission part a sentence that says so."""
    accuracy, sentences = metrics.get("assign_accuracy"), []
    for name in heads:
        emission = metrics.get(f"free_{name}_emission")
        if accuracy is not None and emission is not None and accuracy >= ACCURATE and emission < RARE:
            sentences.append(
                f"{name}: behind the records' own words the trigger is right in {accuracy:.0%} (assign_accuracy), and "
                f"in free answers to questions that want it it comes in {emission:.0%} (free_{name}_emission): the "
                "words before it go another way, so train longer with the losses mllm and assign"
            )
    return sentences


def answered(
    tpo: TaskPreferenceModel, head: str, generated: GenerateOutput, row: int, tasks: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], Any, int] | None:
    """What a head gave for the first tasks of a record, as many as its tokens in an answer cover.

    Its outputs, the collated truth, and of how many task tokens they are; None of no task.
    """
    outputs, num_given = generated.outputs_of(head, row)
    num_tasks, num_tokens = covered(tpo.codecs[head], num_given, tasks)
    if not num_tasks:
        return None
    values = {name: value[:num_tokens] for name, value in outputs.items()}
    return values, tpo.codecs[head].collate_truth(list(tasks[:num_tasks])), num_tokens


def covered(codec: Codec, num_given: int, tasks: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """How many of a record's tasks, from the first on, `num_given` task tokens serve whole, and of how many tokens."""
    ends = [end for end in accumulate(codec.num_tokens(task) for task in tasks) if end <= num_given]
    return len(ends), ends[-1] if ends else 0


# -- questions ---------------------------------------------------------------------------------------------------------


def _questions(dataset: Any, number: int, chosen: Sequence[int]) -> Iterator[tuple[int, Sample]]:
    """Of `number` equal parts of the dataset those that are `chosen`: of each one sample, up to one of its answers.

    The same in each evaluation, and not always at the same place of a part, which data in a regular order would show.
    """
    from tpo_plugin.data.dataset import Sample  # not above: whoever trains on other data needs nothing that reads media

    for index in chosen:
        rng = np.random.default_rng([number, index])
        low, high = (len(dataset) * i // number for i in (index, index + 1))
        sample = dataset[int(rng.integers(low, high))]
        if not isinstance(sample, Sample):
            raise TPOError(
                f"eval_generations asks the questions of records, and the evaluation dataset holds "
                f"{type(sample).__name__}; give a tpo_plugin.data.RecordDataset, or eval_generations=0"
            )
        ends = [i + 1 for i, turn in enumerate(sample.record.turns) if turn.role == "assistant"]
        record = until(sample.record, ends[int(rng.integers(len(ends)))])
        yield index, Sample(record, sample.images[: len(record.images)], sample.videos[: len(record.videos)])


def until(record: Record, end: int) -> Record:
    """The first `end` turns of a conversation, with the media that they show."""
    turns = record.turns[:end]
    tags = [tag for turn in turns for tag in MEDIA_TAG.findall(turn.text)]
    images, videos = tags.count("image"), tags.count("video")
    return replace(record, turns=turns, images=record.images[:images], videos=record.videos[:videos])


# -- answers -----------------------------------------------------------------------------------------------------------


class _Likeliest(LogitsProcessor):
    """Changes nothing: keeps for each trigger where in an answer it was likeliest."""

    def __init__(self, trigger_ids: Sequence[int]) -> None:
        self.trigger_ids = list(trigger_ids)
        self.steps: list[Tensor] = []
        """[triggers] of each step, their probabilities."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(scores[0].float().softmax(-1)[self.trigger_ids])
        return scores


def _asked(trainer: Any, sample: Sample, prefix: str, split: bool) -> tuple[FreeAnswer, dict[str, Any]]:
    """The answer to the last question of a sample; by head its outputs and targets, where it was asked and answered."""
    from tpo_plugin.data.collate import TPOCollator

    tpo, record = trainer.tpo, sample.record
    last = record.turns[-1]
    tasks = {name: [task for task in last.tasks if task["head"] == name] for name in tpo.heads}
    batch = trainer._prepare_inputs(TPOCollator(tpo, for_generation=True)([sample]))
    # Room for another wording; what goes on for longer is not going to say what the record says.
    room = 16 + 2 * len(tpo.tokenizer.encode(last.text, add_special_tokens=False))
    likeliest = _Likeliest([tpo.tokens[name].trigger_id for name in tpo.heads])
    generated = tpo.generate(**batch, do_sample=False, max_new_tokens=room, logits_processor=[likeliest])
    ids = generated.sequences[0, generated.prompt_length :]
    called = {prediction.head for prediction in generated.predictions[0]}
    wants = [name for name, asked in tasks.items() if asked]
    missing = [name for name in wants if name not in called]
    triggers = {}
    if missing or (wants and split):  # what one rank runs, all run
        in_record = _in_record(trainer, sample)
        steps = torch.stack(likeliest.steps).cpu()
        for column, name in enumerate(tpo.heads):
            if name in missing:
                place = int(steps[:, column].argmax())
                behind = words(tpo.tokenizer, ids[:place])
                triggers[name] = Trigger(in_record, float(steps[place, column]), behind)
    answer = FreeAnswer(
        evaluation=prefix,
        step=trainer.state.global_step,
        record=record.place,
        question=record.turns[-2].text if len(record.turns) > 1 else "",
        answer=words(tpo.tokenizer, ids),
        wants=wants,
        called=[name for name in tpo.heads if name in called],
        triggers=triggers,
    )
    heads = {name: answered(tpo, name, generated, 0, asked) for name, asked in tasks.items()}
    return answer, send_to_device({name: given[:2] for name, given in heads.items() if given is not None}, "cpu")


def _in_record(trainer: Any, sample: Sample) -> float:
    """The geometric mean of the probabilities of the record's triggers, each behind the record's own words."""
    from tpo_plugin.data.collate import TPOCollator

    batch = trainer._prepare_inputs(TPOCollator(trainer.tpo)([sample]))
    trainer.model(**batch)
    loss = trainer.tpo.last_output.losses["assign"]
    return math.exp(-float(loss))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model evaluates, without gradients; afterwards each module is as it was."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in before:
            module.training = training


def _say_once(trainer: Any, reason: str) -> None:
    if trainer.is_world_process_zero() and not getattr(trainer, "_free_refused", False):
        trainer._free_refused = True
        logger.warning(
            "eval_generations: no free answers are measured: %s; `tpo doctor RUN --prompts` asks the finished run",
            reason,
        )


# -- the file ----------------------------------------------------------------------------------------------------------


def write(path: Path, answers: Sequence[FreeAnswer], evaluation: str, step: int) -> None:
    """Adds those of an evaluation; what an interrupted run wrote of this evaluation, or of a later one, is replaced."""
    kept = [a for a in read(path) if a.step < step or (a.evaluation != evaluation and a.step == step)]
    text = "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in (*kept, *answers))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda name: Path(name).write_text(text, encoding="utf-8"))


def read(path: Path) -> list[FreeAnswer]:
    """Those of all evaluations, none where there is no file. Raises `TPOError` for a file that is none of ours."""
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [
            FreeAnswer(**line | {"triggers": {name: Trigger(**given) for name, given in line["triggers"].items()}})
            for line in lines
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise TPOError(f"{path}: holds no free answers ({error}); remove it, evaluations write it anew") from error
