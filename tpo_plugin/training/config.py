"""One YAML file describes a run: the host, LoRA, and three stages. No torch in here.

The defaults are the paper's schedule (arXiv 2412.19326): rates, batch sizes, epochs, warm-up, weight decay. Its
exceptions for single tasks are a run's own to state: in stage 2 the temporal task token at 2e-4 (`tokens.temporal`),
and 25, 1 and 3 passes over temporal, region and mask data (`weight` of a source).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpo_plugin.config import TPOConfig, config_from_dict
from tpo_plugin.errors import TPOError

STAGES = ("stage1", "stage2", "stage3")
"""Task assignment, task training, multi-task training."""


@dataclass(kw_only=True)
class DataSource:
    """One file of records and its share in a stage."""

    file: str
    """JSON Lines of records, or a LLaVA JSON file; relative to the working directory."""
    media: str | None = None
    """Folder that the records' media paths are relative to; None takes the file's own folder."""
    weight: float = 1.0
    """Passes over this source in one epoch: 2 repeats every record, 0.5 takes another half of them each epoch."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise TPOError(f"data source {self.file!r}: weight is {self.weight!r}; expected a number above 0")


@dataclass(kw_only=True)
class DataConfig:
    """How records are read, in all stages."""

    video: dict[str, Any] = field(default_factory=dict)
    """How clips are read: fields of `tpo_plugin.data.VideoOptions` (num_frames, sampling, fps, backend)."""
    max_length: int | None = None
    """Tokens of a sample at most; longer ones are cut at the end. None cuts nothing."""
    max_bad_share: float = 0.05
    """Training stops when more than this share of the records has media that cannot be read, 0 to 1."""
    num_workers: int = 0
    """Processes on each rank that read media ahead."""


@dataclass(kw_only=True)
class LoraSettings:
    """LoRA on the language model, through PEFT."""

    r: int = 16
    """Rank."""
    alpha: int = 32
    """Scale of the update is alpha / r."""
    dropout: float = 0.0
    """Probability of zeroing an input of the update, 0 to 1."""
    targets: str | list[str] | None = None
    """PEFT's `target_modules`; None takes every Linear of the language model except its output embedding."""


@dataclass(kw_only=True)
class StageConfig:
    """What trains in one stage, on which data, with which losses."""

    learning_rates: dict[str, float] = field(default_factory=dict)
    """Learning rate by part; what no part names is frozen. Parts: "lora", "heads", "task_tokens" and "triggers" (input
    and output row) or both as "tokens", each of these but LoRA also for one head ("heads.region"), "connector",
    "vision", "language" (the language model itself), or a name under `modules`. The most exact name wins."""
    losses: list[str] | None = None
    """Losses in use: "mllm", "assign" and heads' names; None uses all. Their weights are `tpo.loss_weights`."""
    data: list[DataSource] = field(default_factory=list)
    """Training records; sources are mixed by their weights."""
    eval_data: list[DataSource] = field(default_factory=list)
    """Held-out records, evaluated with the heads' metrics; none evaluates nothing."""
    epochs: float = 1.0
    """Passes over the mixed data."""
    steps: int | None = None
    """Optimizer steps; where given, it decides in place of `epochs`."""
    batch_size: int = 128
    """Samples in one optimizer step, over all ranks and accumulation steps."""
    micro_batch_size: int = 8
    """Samples in one forward on one device; must divide `batch_size` / ranks."""
    warmup: float = 0.2
    """Share of the steps over which the rate rises, at least 0 and below 1."""
    scheduler: str = "cosine"
    """Name of a transformers learning-rate scheduler."""
    weight_decay: float = 0.02
    """AdamW's decay; not on biases, norms and token rows (parameters of one dimension)."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 does not clip."""
    eval_steps: int | None = None
    """Steps between evaluations; None evaluates after each epoch."""
    save_steps: int = 500
    """Steps between checkpoints; a run that was stopped goes on from the last one."""
    logging_steps: int = 10
    """Steps between log lines."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Further `transformers.TrainingArguments` of this stage, for example deepspeed or gradient_checkpointing."""

    def __post_init__(self) -> None:
        self.data = [_build(DataSource, source, f"data[{i}]") for i, source in enumerate(self.data)]
        self.eval_data = [_build(DataSource, source, f"eval_data[{i}]") for i, source in enumerate(self.eval_data)]
        self.learning_rates = {part: _rate(part, rate) for part, rate in self.learning_rates.items()}
        if self.batch_size < 1 or self.micro_batch_size < 1:
            raise TPOError(
                f"batch_size {self.batch_size} and micro_batch_size {self.micro_batch_size}: expected at least 1"
            )
        if not 0 <= self.warmup < 1:
            raise TPOError(f"warmup is {self.warmup!r}; expected a share of the steps, at least 0 and below 1")

    def accumulation(self, num_ranks: int) -> int:
        """Accumulation steps that make `batch_size` on `num_ranks` devices; `TPOError` where it does not divide."""
        per_forward = self.micro_batch_size * num_ranks
        if self.batch_size % per_forward:
            raise TPOError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size} x "
                f"{num_ranks} rank(s); change one, so that every rank does the same number of forwards in a step"
            )
        return self.batch_size // per_forward


def _stage1() -> StageConfig:
    # The triggers' rows belong to the language model, whose LoRA trains at this rate.
    return StageConfig(learning_rates={"lora": 2e-5, "triggers": 2e-5}, losses=["mllm", "assign"], batch_size=128)


def _stage2() -> StageConfig:
    return StageConfig(learning_rates={"lora": 2e-5, "heads": 1e-4, "tokens": 1e-4}, batch_size=128)


def _stage3() -> StageConfig:
    parts = ("lora", "heads", "tokens", "connector", "vision")
    return StageConfig(learning_rates=dict.fromkeys(parts, 2e-5), batch_size=256, epochs=3.0)


@dataclass(kw_only=True)
class TrainConfig:
    """A whole run."""

    model: str
    """Folder or hub name of the host."""
    output_dir: str
    """Folder of the run: one folder for each stage, and the result."""
    heads: list[str] = field(default_factory=list)
    """Heads to apply; none applies all that are installed."""
    tpo: TPOConfig = field(default_factory=TPOConfig)
    """Loss weights and the heads' own configurations."""
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    """None trains without LoRA."""
    modules: dict[str, str] = field(default_factory=dict)
    """Regular expression on parameter names for a part ("connector", "vision", or a name of your own), where the host's
    own module names do not show it."""
    dtype: str = "auto"
    """Precision that the host is loaded in: "auto" (as it was saved), "bfloat16", "float32"."""
    attn: str = "auto"
    """Attention: "auto" is flash_attention_2 where it can run (a GPU of capability 8.0, half precision, the package
    flash-attn), else what transformers chooses: SDPA where the host has it. Or a name that transformers has: "sdpa"."""
    bf16: bool | None = None
    """Autocast to bfloat16; None: where the device can and the host is not float32."""
    seed: int = 0
    """Of weights, data order and dropout."""
    data: DataConfig = field(default_factory=DataConfig)
    """How records are read."""
    stage1: StageConfig | None = field(default_factory=_stage1)
    """Task assignment: LoRA learns to emit the triggers. None leaves the stage out."""
    stage2: StageConfig | None = field(default_factory=_stage2)
    """Task training: LoRA, task tokens and heads."""
    stage3: StageConfig | None = field(default_factory=_stage3)
    """Multi-task training on task and conversation data together, with connector and vision encoder."""

    def __post_init__(self) -> None:
        self.tpo = _build(TPOConfig, self.tpo, "tpo")
        self.data = _build(DataConfig, self.data, "data")
        self.lora = None if self.lora is None else _build(LoraSettings, self.lora, "lora")
        defaults = {"stage1": _stage1, "stage2": _stage2, "stage3": _stage3}
        for name, default in defaults.items():
            value = getattr(self, name)
            if isinstance(value, dict):
                value = dataclasses.asdict(default()) | value
            setattr(self, name, None if value is None else _build(StageConfig, value, name))
        if not self.stages:
            raise TPOError("stage1, stage2 and stage3 are all left out; expected at least one")

    @property
    def stages(self) -> dict[str, StageConfig]:
        """The stages that are run, by name, in their order."""
        return {name: stage for name in STAGES if (stage := getattr(self, name)) is not None}

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainConfig:
        """Reads a YAML file; a stage's keys change its default. A `TPOError` for a typo names the nearest valid key."""
        import yaml

        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise TPOError(f"{path}: not a readable YAML file: {error}") from error
        if not isinstance(values, dict):
            raise TPOError(f"{path}: expected keys and values, got {type(values).__name__}")
        try:
            return config_from_dict(cls, values, where="config")
        except TypeError as error:  # a required key is missing
            raise TPOError(f"{path}: {error}") from error
        except TPOError as error:
            raise TPOError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the YAML file."""
        return dataclasses.asdict(self)


def _rate(part: str, value: Any) -> float:
    try:
        rate = float(value)  # YAML reads 2e-5 as text
    except (TypeError, ValueError):
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise TPOError(
            f"learning_rates[{part!r}] is {value!r}; expected a number above 0; leave a part out to freeze it"
        )
    return rate


def _build(cls: type, value: Any, where: str) -> Any:
    if isinstance(value, cls):
        return value
    if not isinstance(value, dict):
        raise TPOError(f"{where}: expected keys and values, got {value!r}")
    try:
        return config_from_dict(cls, value, where=where)
    except TypeError as error:
        raise TPOError(f"{where}: {error}") from error
    except TPOError as error:
        message = str(error)
        raise TPOError(message if message.startswith(where) else f"{where}.{message}") from error
