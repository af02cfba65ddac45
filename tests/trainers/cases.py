"""The trainers and their commands: those of docs/trainers.md, with the sizes of a tiny model on a CPU."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Run:
    """One training: what is trained on, where to, how many rows are a micro-batch, and how many of these a step."""

    world: Path
    output: Path
    batch: int
    accumulation: int
    bin: Path
    """Folder of the environment's commands."""

    @property
    def python(self) -> str:
        """The environment's."""
        return str(self.bin / "python")


@dataclass(frozen=True)
class Case:
    """A trainer, as somebody starts it who has never heard of TPO."""

    name: str
    package: str
    """Whose version the table shows."""
    env: str
    """Name of its list in tests/envs; "" is the environment of this project."""
    host: str
    """The model of `world` that is trained."""
    command: Callable[[Run], list[Any]]
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def bin(self) -> Path:
        """Of its environment: TPO_ENVS/NAME/bin, else .venv-NAME/bin in this repository."""
        if not self.env:
            return Path(sys.executable).parent
        folder = os.environ.get("TPO_ENVS")
        return (Path(folder) / self.env if folder else ROOT / f".venv-{self.env}") / "bin"


TRAINING = {"learning_rate": 1e-3, "max_steps": 2, "logging_steps": 1, "save_steps": 1, "lr_scheduler_type": "constant"}
TEXT, VISION = "text-qwen2", "vision-qwen2.5"


def _options(run: Run, **options: Any) -> list[str]:
    given = {
        "output_dir": run.output,
        "per_device_train_batch_size": run.batch,
        "gradient_accumulation_steps": run.accumulation,
        **TRAINING,
        "report_to": "none",
        **options,
    }
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def _trl(run: Run, host: str, data: str) -> list[Any]:
    cpu = {"use_cpu": True, "bf16": False, "dtype": "float32", "gradient_checkpointing": False}
    names = {"model_name_or_path": run.world / host, "dataset_name": run.world / data}
    return [run.bin / "trl", "sft", *_options(run, **names, **cpu)]


def _llamafactory(run: Run) -> list[Any]:
    (run.world / "dataset_info.json").write_text(
        json.dumps(
            {
                "boxes": {
                    "file_name": "vision.jsonl",
                    "formatting": "sharegpt",
                    "columns": {"messages": "messages", "images": "images"},
                    "tags": {
                        "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
                    },
                }
            }
        )
    )  # fmt: skip
    settings = {
        "model_name_or_path": str(run.world / VISION), "stage": "sft", "do_train": True, "finetuning_type": "full",
        "dataset": "boxes", "dataset_dir": str(run.world), "template": "qwen2_vl", "cutoff_len": 1024,
        "preprocessing_num_workers": 2, "use_cpu": True, "output_dir": str(run.output), "report_to": "none",
        "per_device_train_batch_size": run.batch, "gradient_accumulation_steps": run.accumulation, **TRAINING,
    }  # fmt: skip
    run.output.mkdir(parents=True, exist_ok=True)
    (run.output / "train.yaml").write_text(json.dumps(settings))  # JSON is YAML
    return [run.bin / "llamafactory-cli", "train", run.output / "train.yaml"]


def _swift(run: Run) -> list[Any]:
    cpu = {"use_cpu": True, "torch_dtype": "float32", "attn_impl": "sdpa", "gradient_checkpointing": False}
    local = {"check_model": False, "use_hf": True, "split_dataset_ratio": 0, "add_version": False, "tuner_type": "full"}
    names = {"model": run.world / VISION, "model_type": "qwen2_5_vl", "template": "qwen2_5_vl"}
    return [run.bin / "swift", "sft", *_options(run, **names, dataset=run.world / "vision.jsonl", **cpu, **local)]


def _axolotl(run: Run) -> list[Any]:
    settings = {
        "base_model": str(run.world / TEXT), "output_dir": str(run.output),
        "dataset_prepared_path": str(run.output / "set"),
        "datasets": [{"path": str(run.world / "text" / "train.jsonl"), "ds_type": "json", "type": "chat_template"}],
        "chat_template": "tokenizer_default", "sequence_len": 512, "sample_packing": False,
        "micro_batch_size": run.batch,
        "gradient_accumulation_steps": run.accumulation, "bf16": False, "tf32": False, "flash_attention": False,
        "sdp_attention": True, "optimizer": "adamw_torch", "lr_scheduler": "constant", "learning_rate": 1e-3,
        "max_steps": 2, "num_epochs": 2, "save_steps": 1, "logging_steps": 1,
    }  # fmt: skip
    run.output.mkdir(parents=True, exist_ok=True)
    (run.output / "train.yaml").write_text(json.dumps(settings))  # JSON is YAML
    return [run.bin / "axolotl", "train", run.output / "train.yaml", "--launcher", "python"]


def _script(name: str, host: str, data: str) -> Callable[[Run], list[Any]]:
    def command(run: Run) -> list[Any]:
        numbers = [run.batch, run.accumulation]
        return [run.python, HERE / "scripts" / name, run.world / host, run.world / data, run.output, *numbers]

    return command


QUIET_AXOLOTL = {"ACCELERATE_USE_CPU": "true", "AXOLOTL_DO_NOT_TRACK": "1"}

CASES = [
    Case("TRL, `trl sft`", "trl", "", TEXT, lambda run: _trl(run, TEXT, "text")),
    Case("TRL, `trl sft`, images", "trl", "", VISION, lambda run: _trl(run, VISION, "pictures")),
    Case("LlamaFactory, `llamafactory-cli train`", "llamafactory", "llamafactory", VISION, _llamafactory),
    Case("ms-swift, `swift sft`", "ms_swift", "ms-swift", VISION, _swift, {"MAX_PIXELS": "12544"}),
    Case("axolotl, `axolotl train`", "axolotl", "axolotl", TEXT, _axolotl, QUIET_AXOLOTL),
    Case(
        "unsloth, `FastLanguageModel`", "unsloth", "unsloth", TEXT, _script("with_unsloth.py", TEXT, "text/train.jsonl")
    ),
]
