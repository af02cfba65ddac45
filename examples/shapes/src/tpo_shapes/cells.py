"""The grid of the ablation: trainings that differ from the recipe in what they are named for, and what they are
compared with.

A cell is a change of the recipe's `TrainConfig`. All of them take the recipe without the loss `retain`, which the paper
has not. A record of a kind comes as often in one cell as in another that has it: where a kind is left out, a step has
so many records less.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tpo_plugin.training.config import DataSource, StageConfig, TrainConfig
from tpo_shapes.demo import HOST_DIRECTORY
from tpo_shapes.recipe import LOSS_WEIGHTS, SHARDS, TPO, Size, train_config
from tpo_shapes.splits import FIRST_HALF, view_of

ALL = ("region", "temporal", "mask")
FULL_CELL = Size(
    num_scenes=2400,
    num_clips=1200,
    heldout_scenes=120,
    heldout_clips=80,
    steps=(20, 160, 320, 180),
    batch_size=12,
)
QUICK_CELL = Size(
    num_scenes=32,
    num_clips=16,
    heldout_scenes=4,
    heldout_clips=4,
    steps=(2, 2, 4, 2),
    batch_size=8,
)
PICTURES_PER_CLIP = 2
"""Of both sizes."""
FULL_RATE = 3e-4
"""Of the language model without LoRA, a tenth of LoRA's in stage 2."""

Change = Callable[[TrainConfig], None]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training."""

    about: str
    """Its title in tables."""
    change: Change = lambda config: None
    """Of the recipe without `retain`."""
    asks: tuple[str, ...] = ALL
    """The heads whose questions it is asked, beside those of conversation."""
    as_text: bool = False
    """Whether boxes and moments are words."""
    trains: bool = True


def configuration(cell: Cell, world: Path, output: Path, size: Size, seed: int) -> TrainConfig:
    """What a cell trains with, on the splits in `world`/data."""
    config = train_config(HOST_DIRECTORY, world, size, seed, TPO)
    config.output_dir = str(output)
    config.tpo.loss_weights.pop("retain", None)
    for stage in config.stages.values():
        stage.save_steps = max(2, min(size.steps[2] // 4, 100))
    cell.change(config)
    _leave_out_empty(config)
    return config


def _leave_out_empty(config: TrainConfig) -> None:
    """A stage without data or losses is none; the next one takes its steps."""
    names = list(config.stages)
    for name, heir in itertools.pairwise(names):
        stage = config.stages[name]
        if not stage.data or stage.losses == []:
            _without_stage(config, name, heir)


# -- what changes ------------------------------------------------------------------------------------------------------


def _kind(source: DataSource) -> str:
    return Path(source.file).stem


def _keep(config: TrainConfig, wanted: Callable[[str], bool]) -> None:
    """Only these kinds of records, and so many the less in a step."""

    def number(sources: list[DataSource]) -> float:
        return sum(s.weight / (PICTURES_PER_CLIP if _kind(s).startswith("clip_") else 1) for s in sources)

    for stage in config.stages.values():
        kept = [source for source in stage.data if wanted(_kind(source))]
        stage.batch_size = max(1, round(stage.batch_size * number(kept) / number(stage.data)))
        stage.micro_batch_size, stage.data = stage.batch_size, kept


def _see(config: TrainConfig, view: str) -> None:
    """The records of tasks in another view."""
    for source in (source for stage in config.stages.values() for source in stage.data):
        if _kind(source).endswith("tasks"):
            source.file = str(view_of(Path(source.file), view))


def _tasks(*heads: str, chat: bool = False) -> Change:
    """These heads alone, on the questions that need them, with conversation or without."""

    def change(config: TrainConfig) -> None:
        kinds = {
            "clip_tasks",
            *(() if heads == ("temporal",) else ("tasks",)),
            *(("chat", "clip_chat") if chat else ()),
        }
        _keep(config, lambda kind: kind in kinds)
        if heads != ALL:
            _see(config, "-".join(heads))
        for name in set(ALL) - set(heads):
            _without_head(config, name)

    return change


def _without_head(config: TrainConfig, name: str) -> None:
    config.heads.remove(name)
    config.tpo.heads.pop(name, None)
    config.tpo.loss_weights.pop(name, None)
    for stage in config.stages.values():
        stage.learning_rates.pop(f"heads.{name}", None)
        if stage.losses:
            stage.losses = [loss for loss in stage.losses if loss != name]


def _words_alone(config: TrainConfig, **more: float) -> None:
    """LoRA, and parts of `more` at its rate, learn words; a head is there and does nothing."""
    for name in ALL[1:]:
        _without_head(config, name)
    for stage in config.stages.values():
        rate = stage.learning_rates["lora"]
        stage.learning_rates = {"lora": rate} | {part: share * rate for part, share in more.items()}
        stage.losses = ["mllm"]


def _chat_alone(config: TrainConfig) -> None:
    _keep(config, lambda kind: kind.endswith("chat"))
    _words_alone(config)


def _as_text(config: TrainConfig) -> None:
    """Boxes and moments as words, and the rows of words train, for the host never learned numbers."""
    _see(config, "text")
    config.modules = {"words": r"(^|\.)(embed_tokens|lm_head)\."}
    _words_alone(config, words=1.0)


def _moment_mlp(config: TrainConfig) -> None:
    _see(config, "moment")
    _without_head(config, "temporal")
    config.heads.insert(1, "moment")
    config.tpo.loss_weights["moment"] = 0.5


def _weights(**weights: float) -> Change:
    return lambda config: config.tpo.loss_weights.update(weights)


def _head(name: str, **settings: object) -> Change:
    return lambda config: config.tpo.heads.update({name: {**config.tpo.heads.get(name, {}), **settings}})


def _without_stage(config: TrainConfig, name: str, heir: str) -> None:
    """Another stage takes its steps. Without stage 3 the rate of stage 2 never falls, for stage 3 is where it does."""
    config.stages[heir].steps = _steps(config.stages.pop(name)) + _steps(config.stages[heir])


def _one_stage(config: TrainConfig) -> None:
    """Everything trains at stage 2's rates, on stage 3's mix and by its schedule, from the first step to the last."""
    stage, last = config.stages["stage2"], config.stages["stage3"]
    stage.data, stage.scheduler = last.data, last.scheduler
    stage.steps = sum(map(_steps, config.stages.values()))
    config.stages = {"stage2": stage}


def _steps(stage: StageConfig) -> int:
    assert stage.steps is not None, "the recipe counts steps"
    return stage.steps


def _frozen(config: TrainConfig) -> None:
    """Nothing of the host trains; it will never say "it is here", so an answer that calls for a head is the call."""
    _see(config, "bare")
    config.lora = None
    for stage in config.stages.values():
        stage.learning_rates.pop("lora")


def _full(config: TrainConfig) -> None:
    """The language model itself trains in the place of LoRA."""
    config.lora = None
    for stage in config.stages.values():
        stage.learning_rates["language"] = FULL_RATE * stage.learning_rates.pop("lora") / 3e-3


def _fixed_task_tokens(config: TrainConfig) -> None:
    for stage in config.stages.values():
        if "tokens" in stage.learning_rates:
            stage.learning_rates["triggers"] = stage.learning_rates.pop("tokens")


def _half(config: TrainConfig) -> None:
    for stage in config.stages.values():
        stage.data = [source for source in stage.data if Path(source.file).parent.name == SHARDS[0]]


def _quarter(config: TrainConfig) -> None:
    _half(config)
    for source in (source for stage in config.stages.values() for source in stage.data):
        source.file = str(view_of(Path(source.file), FIRST_HALF))


CELLS = {
    "host": Cell(about="the host before", trains=False, asks=()),
    "region": Cell(about="region", change=_tasks("region"), asks=("region",)),
    "temporal": Cell(about="temporal", change=_tasks("temporal"), asks=("temporal",)),
    "mask": Cell(about="mask", change=_tasks("mask"), asks=("mask",)),
    "region-mask": Cell(about="region + mask", change=_tasks("region", "mask"), asks=("region", "mask")),
    "all": Cell(about="all three", change=_tasks(*ALL)),
    "all-chat": Cell(about="all three + conversation"),
    "chat": Cell(about="conversation alone", change=_chat_alone, asks=()),
    "retain": Cell(about="... with `retain`", change=_weights(retain=LOSS_WEIGHTS[TPO]["retain"])),
    "no-gradient": Cell(
        about="... the heads' losses at 0", change=_weights(region=0.0, temporal=0.0, mask=0.0), asks=()
    ),
    "chat-16": Cell(about="... words' weight 16", change=_weights(mllm=16.0)),
    "region-temporal": Cell(
        about="region + temporal + conversation",
        change=_tasks("region", "temporal", chat=True),
        asks=("region", "temporal"),
    ),
    "text": Cell(about="... boxes and moments as words", change=_as_text, asks=("region", "temporal"), as_text=True),
    "moment-mlp": Cell(about="... moments by an MLP", change=_moment_mlp),
    "given-mlp": Cell(about="... given boxes by an MLP", change=_head("region", given_box="mlp")),
    "prompt-loss": Cell(about="... masks by `prompt` alone", change=_head("mask", losses=["prompt"])),
    "pixel-loss": Cell(about="... masks by `pixel` alone", change=_head("mask", losses=["pixel"])),
    "no-stage-1": Cell(about="... without stage 1", change=partial(_without_stage, name="stage1", heir="stage2")),
    "no-boxes": Cell(
        about="... without the stage of boxes", change=partial(_without_stage, name="boxes", heir="stage2")
    ),
    "no-stage-2": Cell(about="... without stage 2", change=partial(_without_stage, name="stage2", heir="stage3")),
    "no-stage-3": Cell(about="... without stage 3", change=partial(_without_stage, name="stage3", heir="stage2")),
    "one-stage": Cell(about="... in one stage", change=_one_stage),
    "fixed-tokens": Cell(about="... task tokens as they began", change=_fixed_task_tokens),
    "frozen": Cell(about="... frozen host", change=_frozen),
    "full": Cell(about="... all of the language model", change=_full),
    "data-x1": Cell(about="... a quarter of the data", change=_quarter),
    "data-x2": Cell(about="... half of the data", change=_half),
}
"""By name, the most important first. Three dots stand for "all three + conversation"."""


# -- what is compared --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A cell less another, seed by seed."""

    cell: str
    other: str
    measures: dict[str, float | None]
    """By measure what the paper has for this difference, in points; None where it has no number for it."""
    claim: str = ""
    """What the paper says; empty where it has no such table."""


def _unclaimed(cell: str, *measures: str, other: str = "all-chat") -> Comparison:
    return Comparison(cell=cell, other=other, measures=dict.fromkeys(measures))


CONVERSATION = ("chat", "words")
HEADS = ("boxes", "moments", "masks")
COMPARISONS = (
    Comparison(
        cell="region-mask",
        other="region",
        measures={"boxes": 2.9},
        claim="Masks help boxes: 80.2 beside masks, 77.3 alone",
    ),
    Comparison(
        cell="region-mask",
        other="mask",
        measures={"masks": 3.2},
        claim="Boxes help masks: 58.3 beside boxes, 55.1 alone",
    ),
    Comparison(
        cell="all",
        other="region-mask",
        measures={"boxes": 1.4, "masks": 3.1},
        claim="Moments help both: 81.6 and 61.4 with all three, 80.2 and 58.3 without moments",
    ),
    Comparison(
        cell="all", other="temporal", measures={"moments": 6.5}, claim="The others help moments: 36.7, alone 30.2"
    ),
    Comparison(
        cell="all-chat",
        other="all",
        measures={"boxes": 0.4, "moments": 3.5, "masks": 2.5},
        claim="Conversation helps the tasks: 82.0, 40.2, 63.9 with it, 81.6, 36.7, 61.4 without",
    ),
    Comparison(
        cell="all-chat",
        other="host",
        measures={"chat": 8.6, "words": None},
        claim="Conversation gains: MVBench 60.4 to 66.8, Video-MME 39.5 to 48.8, MLVU 44.5 to 54.7",
    ),
    Comparison(
        cell="all-chat",
        other="chat",
        measures=dict.fromkeys(CONVERSATION),
        claim="... and that comes of the heads, not of training on conversation",
    ),
    Comparison(
        cell="region-temporal",
        other="text",
        measures={"moments": 21.6, "boxes": None, "chat": 2.1, "words": None},
        claim="Heads find more than the same data as text: moments 40.2 and 18.6, MVBench 66.8 and 64.7",
    ),
    Comparison(
        cell="all-chat",
        other="moment-mlp",
        measures={"moments": 22.4, "chat": 1.0},
        claim="CG-DETR finds more than an MLP: moments 40.2 and 17.8, MVBench 66.8 and 65.8",
    ),
    _unclaimed("region-temporal", "ms", other="text"),
    _unclaimed("retain", *CONVERSATION, *HEADS),
    _unclaimed("no-gradient", *CONVERSATION),
    _unclaimed("chat-16", *CONVERSATION, *HEADS),
    _unclaimed("given-mlp", "boxes", "given", "masks", *CONVERSATION),
    _unclaimed("prompt-loss", "masks", *CONVERSATION),
    _unclaimed("pixel-loss", "masks", *CONVERSATION),
    *(_unclaimed(name, *HEADS, "chat") for name in ("no-stage-1", "no-boxes", "no-stage-2", "no-stage-3", "one-stage")),
    _unclaimed("fixed-tokens", *HEADS),
    *(_unclaimed(name, *HEADS, *CONVERSATION) for name in ("frozen", "full")),
    *(_unclaimed(name, *HEADS, "chat") for name in ("data-x1", "data-x2")),
)
