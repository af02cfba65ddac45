"""How much the demo makes, and how it trains: sizes, heads, loss weights and the stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo_plugin.config import TPOConfig
from tpo_plugin.data.media import VideoOptions
from tpo_plugin.training.config import DataConfig, DataSource, LoraSettings, StageConfig, TrainConfig
from tpo_shapes.evaluate import VIDEO
from tpo_shapes.micro_sam import ARCHITECTURE
from tpo_shapes.report import BASELINE, FROZEN, HOST, TPO

SHARDS = ("train-0", "train-1")
LOGGING_STEPS = 5
HEADS = {TPO: ("region", "temporal", "mask"), BASELINE: ("moment",), FROZEN: ("region", "temporal", "mask")}
FILES = {TPO: "tpo", BASELINE: "baseline", FROZEN: "frozen", HOST: "host"}
"""What the files of a model are called in the demo's directory."""
LOSS_WEIGHTS: dict[str, dict[str, float]] = {
    TPO: {"mllm": 4.0, "region": 5.0, "temporal": 0.1, "retain": 32.0},
    FROZEN: {"region": 5.0, "temporal": 0.1},
    BASELINE: {"moment": 0.5},
}
TASKS_OF = {TPO: "", BASELINE: "_baseline", FROZEN: "_bare"}
"""What the files of a model's records of tasks end in."""
CG_DETR: dict[str, Any] = {
    "hidden": 64,
    "num_heads": 4,
    "feed_forward": 512,
    "input_layers": 2,
    "cross_layers": 1,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "dummy_layers": 1,
    "num_dummies": 4,
    "num_queries": 3,
    "dropout": 0.0,
    "input_dropout": 0.0,
    "reference_losses": False,
    "text": "words",
}
"""The temporal head for clips of eight frames."""

REGION_HEAD: dict[str, Any] = {"given_box": "fourier"}
"""A box that the user gives as waves."""
MASK_HEAD: dict[str, Any] = {**ARCHITECTURE, "losses": ["pixel", "prompt"], "given_box": "adapter"}
"""The mask head on the demo's own SAM 2; a box that the user gives reaches it through the language model alone."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a run makes, trains and asks."""

    num_scenes: int
    """Training pictures; each has one record of conversation and one of tasks."""
    num_clips: int
    """Training clips."""
    heldout_scenes: int
    heldout_clips: int
    steps: tuple[int, int, int, int]
    """Of the stages."""
    batch_size: int


FULL = Size(
    num_scenes=5000,
    num_clips=2400,
    heldout_scenes=250,
    heldout_clips=220,
    steps=(30, 150, 310, 450),
    batch_size=24,
)
QUICK = Size(
    num_scenes=96,
    num_clips=24,
    heldout_scenes=12,
    heldout_clips=6,
    steps=(5, 5, 10, 5),
    batch_size=16,
)


def run_directory(directory: Path, name: str) -> Path:
    """Where a model is trained."""
    return directory if name == TPO else directory / FILES[name]


def sam_file(directory: Path) -> Path:
    """Where the weights of the demo's SAM 2 are."""
    return directory / "micro_sam.safetensors"


def train_config(host: Path, directory: Path, size: Size, seed: int, name: str) -> TrainConfig:
    """The stages of `TPO`, of the baseline, on the same records, or of `FROZEN`: the paper's three, and before its 2nd
    one of boxes and masks in pictures alone, for beside other losses boxes may stay the constant one.

    The baseline says boxes in words, which the host never learned, so its word embeddings train too; its moments come
    from `moment_mlp`. `FROZEN` trains nothing of the host, and takes half of the steps.
    """

    as_text, frozen = name == BASELINE, name == FROZEN

    def host_parts(rate: float) -> dict[str, float]:
        return {"lora": rate, "words": rate} if as_text else {} if frozen else {"lora": rate}

    def parts(rate: float) -> dict[str, float]:
        temporal = {} if as_text else {"heads.temporal": 2e-3}
        return {**host_parts(rate), "tokens": rate, "heads": rate, **temporal}

    def mix(chat: float, tasks: float) -> dict[str, float]:
        return {"chat": chat, "tasks": tasks, "clip_chat": 2.5 * chat, "clip_tasks": 3.0}

    def stage(
        number: int, rates: dict[str, float], kinds: dict[str, float], losses: list[str] | None = None
    ) -> StageConfig:
        return StageConfig(
            learning_rates=rates,
            losses=losses,
            data=[
                DataSource(file=str(directory / "data" / shard / records_file(kind, name)), weight=weight)
                for shard in SHARDS
                for kind, weight in kinds.items()
            ],
            steps=-(-size.steps[number] // (2 if frozen else 1)),
            batch_size=size.batch_size,
            micro_batch_size=size.batch_size,
            warmup=0.1,
            scheduler="constant_with_warmup" if number in (1, 2) else "cosine",  # the last goes on, and comes to rest
            max_grad_norm=0.0,  # clipped together, the noise of one head slows the others
            save_steps=200,
            logging_steps=LOGGING_STEPS,
            trainer={"disable_tqdm": True, "adam_beta2": 0.98},
        )

    return TrainConfig(
        model=str(host),
        output_dir=str(run_directory(directory, name)),
        heads=list(HEADS[name]),
        tpo=TPOConfig(loss_weights=LOSS_WEIGHTS[name], heads=_head_configs(directory, name)),
        lora=None if frozen else LoraSettings(),
        modules={"words": r"(^|\.)(embed_tokens|lm_head)\."} if as_text else {},
        seed=seed,
        report_to=[],
        data=DataConfig(video=VideoOptions(**VIDEO)),
        stages={
            "stage1": stage(0, {**host_parts(3e-3), "triggers": 3e-3}, mix(1.0, 1.0), ["mllm", "assign", "retain"]),
            "boxes": stage(1, parts(3e-3), {"tasks": 1.0}, None if as_text else ["region", "mask"]),
            "stage2": stage(2, parts(3e-3), mix(0.4, 0.5)),
            "stage3": stage(3, parts(1e-3), mix(1.0, 0.5)),
        },
    )


def _head_configs(directory: Path, name: str) -> dict[str, dict[str, Any]]:
    mask = {**MASK_HEAD, "checkpoint": str(sam_file(directory))}
    configs = {"region": REGION_HEAD, "temporal": dict(CG_DETR), "mask": mask}
    return {head: config for head, config in configs.items() if head in HEADS[name]}


def records_file(kind: str, name: str) -> str:
    """Name of the file of records that a run takes for a kind of them."""
    return f"{kind}{TASKS_OF[name] if kind.endswith('tasks') else ''}.jsonl"
