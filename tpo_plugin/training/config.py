"""One YAML file describes a run: the host, LoRA, and the stages. No torch in here.

`stages` names them, in the order in which they run. Those of the names "stage1", "stage2" and "stage3", which are also
the default, start from the paper's schedule (arXiv 2412.19326): rates, batch sizes, epochs, warm-up, weight decay. The
paper's exceptions for single tasks are a run's own to state: in stage 2 the temporal task token at 2e-4
(`task_tokens.temporal`), and 25, 1 and 3 passes over temporal, region and mask data (`weight` of a source).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval, MinLen, Predicate, doc
from pydantic import BeforeValidator

from tpo_plugin.config import Config, Count, NotNegative, Positive, Share, TPOConfig, config_from_dict
from tpo_plugin.data.media import ImageOptions, VideoOptions
from tpo_plugin.errors import TPOError, did_you_mean
from tpo_plugin.plugins import registry
from tpo_plugin.validation import WrongValues, build
from tpo_plugin.yaml_file import read_yaml

CONFIG_FILE, INPUTS_FILE = "config.yaml", "inputs.json"
"""What a run's folder has from its start: its configuration, and what it was given (`inputs.py`)."""

PARTS_OF_HEADS = ("heads", "task_tokens", "triggers", "tokens")
PARTS = ("lora", *PARTS_OF_HEADS, "connector", "vision", "language")
"""Parts of any host that a stage may train; those of heads also as `heads.region`, for one of them."""

Text = Annotated[str, MinLen(1)]


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _is_stage_name(name: str) -> bool:
    return bool(re.fullmatch(r"[a-z][a-z0-9_-]*", name)) and not re.match(r"final$|checkpoint-", name)


Pattern = Annotated[str, Predicate(_is_pattern), doc("a regular expression")]
Rate = Annotated[Positive, doc("a finite number above 0; leave a part out to freeze it")]
StageName = Annotated[
    str,
    Predicate(_is_stage_name),
    doc("a stage's name, which is its folder's: a-z, then a-z, 0-9, _ and -; neither final nor checkpoint-…"),
]


@dataclass(kw_only=True)
class DataSource(Config):
    """One file of records and its share in a stage."""

    file: Text
    """JSON Lines of records, or a LLaVA JSON file; relative to the working directory. Or tables of Hugging Face
    datasets (`train-*.parquet`, `*.arrow`, a folder saved to disk), or WebDataset's shards (`{000..099}.tar`).
    It may be packed (.gz, .zst), stand in a tar (`a.tar/records.jsonl`), or be a URL (`https://`, `s3://`, `hf://`)."""
    media: str | None = None
    """Folder, or a tar, that the records' media paths are relative to; None takes the file's own folder."""
    weight: Positive = 1.0
    """Passes over this source in one epoch: 2 repeats every record, 0.5 takes another half of them each epoch."""


@dataclass(kw_only=True)
class DataConfig(Config):
    """How records are read, in all stages."""

    video: VideoOptions = field(default_factory=VideoOptions)
    """How clips are read."""
    image: ImageOptions = field(default_factory=ImageOptions)
    """How pictures are read."""
    max_length: Count | None = None
    """Tokens of a sample at most; longer ones are cut at the end. None cuts nothing."""
    max_bad_share: Share = 0.05
    """Training stops when more than this share of the records has media that cannot be read, 0 to 1."""
    confine: bool = False
    """Whether a record that names a file outside of its media folder is refused, for records of others."""
    num_workers: Annotated[int, Ge(0)] = 0
    """Processes on each rank that read media ahead."""


@dataclass(kw_only=True)
class LoraSettings(Config):
    """LoRA on the language model, through PEFT."""

    r: Count = 16
    """Rank."""
    alpha: Count = 32
    """Scale of the update is alpha / r."""
    dropout: Share = 0.0
    """Probability of zeroing an input of the update, 0 to 1."""
    targets: str | list[str] | None = None
    """PEFT's `target_modules`; None takes every Linear of the language model except its output embedding."""


@dataclass(kw_only=True)
class StageConfig(Config):
    """What trains in one stage, on which data, with which losses."""

    learning_rates: dict[str, Rate] = field(default_factory=dict)
    """Learning rate by part; what no part names is frozen. Parts: "lora", "heads", "task_tokens" and "triggers" (input
    and output row) or both as "tokens", each of these but LoRA also for one head ("heads.region"), "connector",
    "vision", "language" (the language model itself), or a name under `modules`. The most exact name wins."""
    losses: Annotated[list[str], MinLen(1)] | None = None
    """Losses in use: "mllm", "assign", "retain" and heads' names; None uses all. Their weights are `tpo.loss_weights`.
    The others are not computed in training, and cost nothing there: without "mllm" the host computes no loss."""
    data: list[DataSource] = field(default_factory=list)
    """Training records; sources are mixed by their weights."""
    eval_data: list[DataSource] = field(default_factory=list)
    """Held-out records, evaluated with the heads' metrics; none evaluates nothing."""
    epochs: Positive = 1.0
    """Passes over the mixed data."""
    steps: Count | None = None
    """Optimizer steps; where given, it decides in place of `epochs`."""
    batch_size: Count = 128
    """Samples in one optimizer step, over all ranks and accumulation steps."""
    micro_batch_size: Count = 8
    """Samples in one forward on one device; must divide `batch_size` / ranks."""
    warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    """Share of the steps over which the rate rises, at least 0 and below 1."""
    scheduler: str = "cosine"
    """Name of a transformers learning-rate scheduler."""
    weight_decay: NotNegative = 0.02
    """AdamW's decay; not on biases, norms and token rows (parameters of one dimension)."""
    max_grad_norm: NotNegative = 1.0
    """Gradients are clipped to this norm; 0 does not clip."""
    eval_steps: Count | None = None
    """Steps between evaluations; None evaluates after each epoch."""
    eval_generations: Annotated[int, Ge(0)] = 16
    """Questions of `eval_data` that each evaluation answers with nothing forced, one by one, to report how often each
    head is called where it is wanted and where it is not (`eval_free_…`); 0 asks none. The other figures of an
    evaluation, `eval_assign_accuracy` among them, are teacher-forced: of what follows the records' own words."""
    save_steps: Count = 500
    """Steps between checkpoints; a run that was stopped goes on from the last one."""
    logging_steps: Count = 10
    """Steps between log lines."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Further `transformers.TrainingArguments` of this stage, for example deepspeed or gradient_checkpointing. Those
    that the stage has under a name of its own, such as learning_rate, are refused."""

    def accumulation(self, num_ranks: int) -> int:
        """Accumulation steps that make `batch_size` on `num_ranks` devices; `TPOError` where it does not divide."""
        per_forward = self.micro_batch_size * num_ranks
        if self.batch_size % per_forward:
            raise TPOError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size} x "
                f"{num_ranks} rank(s); change one, so that every rank does the same number of forwards in a step"
            )
        return self.batch_size // per_forward


def paper_stages() -> dict[str, StageConfig]:
    """The paper's schedule: task assignment (LoRA learns to emit the triggers), task training, multi-task training."""
    parts = ("lora", "heads", "tokens", "connector", "vision")
    return {
        # The triggers' rows belong to the language model, whose LoRA trains at this rate.
        "stage1": StageConfig(learning_rates={"lora": 2e-5, "triggers": 2e-5}, losses=["mllm", "assign"]),
        "stage2": StageConfig(learning_rates={"lora": 2e-5, "heads": 1e-4, "tokens": 1e-4}),
        "stage3": StageConfig(learning_rates=dict.fromkeys(parts, 2e-5), batch_size=256, epochs=3.0),
    }


def _from_the_paper(stages: Any) -> Any:
    """Plain stages of the paper's names, over the paper's schedule."""
    if not isinstance(stages, dict):
        return stages
    paper = {name: dataclasses.asdict(stage) for name, stage in paper_stages().items()}
    return {
        name: paper[name] | stage if name in paper and isinstance(stage, dict) else stage
        for name, stage in stages.items()
    }


@dataclass(kw_only=True)
class TrainConfig(Config):
    """A whole run."""

    model: Text
    """Folder or hub name of the host."""
    output_dir: Text
    """Folder of the run: one folder for each stage, and the result."""
    heads: list[str] = field(default_factory=list)
    """Heads to apply; none applies all that are installed, but those that must be named."""
    tpo: TPOConfig = field(default_factory=TPOConfig)
    """Loss weights and the heads' own configurations."""
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    """None trains without LoRA."""
    modules: dict[str, Pattern] = field(default_factory=dict)
    """Regular expression on parameter names for a part ("connector", "vision", or a name of your own), where the host's
    own module names do not show it."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision that the host is loaded in; "auto": as it was saved."""
    attn: str = "auto"
    """Attention: "auto" is flash_attention_2 where it can run (a GPU of capability 8.0, half precision, the package
    flash-attn), else what transformers chooses: SDPA where the host has it. Or a name that transformers has: "sdpa"."""
    bf16: bool | None = None
    """Autocast to bfloat16; None: where the device can and the host is not float32."""
    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    """Of weights, data order and dropout."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """Where a loss or a gradient is NaN or infinite: "stop" ends the run with which one and the step's records, "skip"
    leaves the step out with a warning that says the same. Neither takes a step with it."""
    report_to: list[Text] | None = None
    """Where else the numbers of `log.jsonl` go: "tensorboard" (files in the folder of each stage), "wandb" (Weights &
    Biases, a run for each stage), or another name that transformers knows. None: tensorboard where it is installed; []:
    nowhere."""
    data: DataConfig = field(default_factory=DataConfig)
    """How records are read."""
    stages: Annotated[
        dict[StageName, StageConfig],
        BeforeValidator(_from_the_paper),
        MinLen(1),
        doc("the stages by their names, at least one"),
    ] = field(default_factory=paper_stages)
    """The stages by name, in the order in which they run. Plain keys of "stage1", "stage2" or "stage3" change the
    paper's stage of that name."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str) -> TrainConfig:
        """As `config_from_dict`; also of the form in which stage1, stage2 and stage3 were keys beside the others."""
        beside = [name for name in paper_stages() if name in values] if isinstance(values, dict) else []
        if beside and "stages" in values:
            raise TPOError(
                f"{where}: {beside[0]}: stands beside stages; expected every stage under stages, or stage1, stage2 and "
                "stage3 as keys of their own and no stages"
            )
        if isinstance(values, dict) and "stages" not in values:
            stages = {name: values.get(name, {}) for name in paper_stages()}
            others = {key: value for key, value in values.items() if key not in stages}
            values = others | {"stages": {name: stage for name, stage in stages.items() if stage is not None}}
        return config_from_dict(cls, values, where=where)

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainConfig:
        """Reads a YAML file, and checks it with the heads' own configurations; raises `TPOError`.

        The `config.yaml` in a run's folder is of that folder, wherever it lies now.
        """
        path = Path(path)
        config = cls.from_dict(read_yaml(path), where=str(path))
        if path.name == CONFIG_FILE and (path.parent / INPUTS_FILE).is_file():
            config.output_dir = str(path.parent)
        config.check_heads(where=str(path))
        return config

    def check_heads(self, *, where: str) -> None:
        """Raises `TPOError` for a head that is not installed or wrongly configured, for a loss or part of none."""
        try:
            heads = {name: registry().head(name) for name in self.heads or registry().default_heads}
        except TPOError as error:
            raise TPOError(f"{where}: heads: {error}") from error
        for name, given in self.tpo.heads.items():
            if name not in heads:
                raise TPOError(f"{where}: tpo.heads: {name!r} is not applied{did_you_mean(name, heads)}")
            if isinstance(given, dict):
                try:
                    build(heads[name].config_class(), given)
                except WrongValues as error:
                    raise error.below("tpo", "heads", name).at(where) from error
        for name, stage in self.stages.items():
            check_losses(stage.losses or [], ["mllm", "assign", "retain", *heads], f"{where}: stages.{name}.losses")
            check_trainer(stage.trainer, f"{where}: stages.{name}.trainer")
            check_parts(stage.learning_rates, heads, self.modules, f"{where}: stages.{name}.learning_rates")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the YAML file."""
        return dataclasses.asdict(self)


def check_losses(losses: Sequence[str], kinds: Sequence[str], where: str) -> None:
    """Raises `TPOError` for one that is none of these kinds, and for "retain" without the loss of what it retains."""
    for index, loss in enumerate(losses):
        if loss not in kinds:
            raise TPOError(f"{where}[{index}]: is {loss!r}{did_you_mean(loss, kinds)}")
    if "retain" in losses and "mllm" not in losses:
        raise TPOError(f"{where}: has 'retain' without 'mllm', the loss of what it retains; add 'mllm'")


_OWN_KEYS = {
    "output_dir": "each stage has a folder of its own in the run's output_dir",
    "learning_rate": "the stage says it by part, in learning_rates",
    "num_train_epochs": "the stage's key is epochs",
    "max_steps": "the stage's key is steps",
    "per_device_train_batch_size": "the stage's key is micro_batch_size",
    "gradient_accumulation_steps": "it follows from the stage's batch_size, micro_batch_size and the ranks",
    "auto_find_batch_size": "a step would have fewer samples than batch_size says; lower micro_batch_size",
}
"""Of `TrainingArguments` what a stage says in its own words, or what would contradict them."""


def check_trainer(given: Iterable[str], where: str) -> None:
    """Raises `TPOError` for an argument that the stage has under another name."""
    for name in given:
        if name in _OWN_KEYS:
            raise TPOError(f"{where}: has {name!r}; {_OWN_KEYS[name]}")


def check_parts(names: Iterable[str], heads: Iterable[str], modules: Iterable[str], where: str) -> None:
    """Raises `TPOError` for a name that is no part of any host that is known here, with these heads and `modules`."""
    valid = {*PARTS, *modules, *(f"{part}.{head}" for part in PARTS_OF_HEADS for head in heads)}
    unknown = [name for name in names if name not in valid]
    if unknown:
        valid |= _parts_of_patches()
    for name in unknown:
        if name not in valid:
            raise TPOError(f"{where}: has {name!r}, which is no part of a model{did_you_mean(name, valid)}")


def _parts_of_patches() -> set[str]:
    """What installed patches call parts of their hosts. Loads torch."""
    found: set[str] = set()
    for patch in registry().patches.values():
        with suppress(TPOError):  # a patch that cannot be loaded has no host either
            found |= set(patch.host_class().parts)
    return found
