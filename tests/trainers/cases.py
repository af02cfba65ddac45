"""The trainers and their commands: those of docs/trainers.md, with the sizes of a tiny model on a CPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPTS = HERE / "scripts"


@dataclass(frozen=True)
class Run:
    """One training: what is trained on, where to, how many rows are a micro-batch, and how many of these a step."""

    world: Path
    output: Path
    batch: int
    accumulation: int
    bin: Path
    """Folder of the environment's commands."""
    scripts: Path = SCRIPTS

    def tool(self, name: str) -> str:
        """A command of the environment."""
        return str(self.bin / name)


@dataclass(frozen=True)
class Case:
    """A trainer, as somebody starts it who has never heard of TPO."""

    name: str
    package: str
    """Whose version the table shows; "" is the commit of `code`."""
    env: str
    """Name of its list in tests/envs; "" is the environment of this project."""
    host: str
    """The model of `world` that is trained."""
    command: Callable[[Run], list[Any]]
    how: str = ""
    """What the page says about it: how the boxes are given, and the limits."""
    files: Callable[[Run], dict[str, Any]] = lambda run: {}
    """Files that the command reads, in the folder of its output, by name: JSON, which YAML is too."""
    variables: dict[str, str] = field(default_factory=dict)
    code: str = ""
    """Folder in TPO_CODE of a clone of a repository that no registry has, or in it; commands start there."""
    refused: str = ""
    """What `tpo run` says where it refuses the trainer."""

    @property
    def folder(self) -> Path:
        """Where its commands start."""
        return Path(os.environ.get("TPO_CODE", ROOT / ".code")) / self.code if self.code else ROOT

    @property
    def bin(self) -> Path:
        """Of its environment: TPO_ENVS/NAME/bin, else .venv-NAME/bin in this repository."""
        if not self.env:
            return Path(sys.executable).parent
        folder = os.environ.get("TPO_ENVS")
        return (Path(folder) / self.env if folder else ROOT / f".venv-{self.env}") / "bin"


TRAINING = {"learning_rate": 1e-3, "max_steps": 2, "logging_steps": 1, "save_steps": 1, "lr_scheduler_type": "constant"}
TEXT, VISION = "tiny-Qwen2", "tiny-Qwen2.5-VL"


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
    return _options(run, **names, **cpu)


def _llamafactory_files(run: Run) -> dict[str, Any]:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    columns = {"messages": "messages", "images": "images"}
    boxes = {"file_name": f"{run.world}/vision.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags}
    settings = {
        "model_name_or_path": f"{run.world}/{VISION}", "stage": "sft", "do_train": True, "finetuning_type": "full",
        "dataset": "boxes", "dataset_dir": str(run.output), "template": "qwen2_vl", "cutoff_len": 1024,
        "preprocessing_num_workers": 2, "use_cpu": True, "output_dir": str(run.output), "report_to": "none",
        "per_device_train_batch_size": run.batch, "gradient_accumulation_steps": run.accumulation, **TRAINING,
    }  # fmt: skip
    return {"dataset_info.json": {"boxes": boxes}, "train.yaml": settings}


def _swift(run: Run) -> list[Any]:
    cpu = {"use_cpu": True, "torch_dtype": "float32", "attn_impl": "sdpa", "gradient_checkpointing": False}
    local = {"check_model": False, "use_hf": True, "split_dataset_ratio": 0, "add_version": False, "tuner_type": "full"}
    names = {"model": run.world / VISION, "model_type": "qwen2_5_vl", "template": "qwen2_5_vl"}
    return [run.tool("swift"), "sft", *_options(run, **names, dataset=run.world / "vision.jsonl", **cpu, **local)]


def _axolotl_files(run: Run) -> dict[str, Any]:
    data = {"path": f"{run.world}/text/train.jsonl", "ds_type": "json", "type": "chat_template"}
    settings = {
        "base_model": f"{run.world}/{TEXT}", "output_dir": str(run.output), "datasets": [data],
        "dataset_prepared_path": f"{run.output}/set", "chat_template": "tokenizer_default", "sequence_len": 512,
        "sample_packing": False, "micro_batch_size": run.batch, "gradient_accumulation_steps": run.accumulation,
        "bf16": False, "tf32": False, "flash_attention": False, "sdp_attention": True, "optimizer": "adamw_torch",
        "lr_scheduler": "constant", "learning_rate": 1e-3, "max_steps": 2, "num_epochs": 2, "save_steps": 1,
        "logging_steps": 1,
    }  # fmt: skip
    return {"train.yaml": settings}


def _script(name: str, host: str, data: str) -> Callable[[Run], list[Any]]:
    def command(run: Run) -> list[Any]:
        numbers = [run.batch, run.accumulation]
        return [run.tool("python"), run.scripts / name, run.world / host, run.world / data, run.output, *numbers]

    return command


def _2u1(run: Run) -> list[Any]:
    names = {"model_id": run.world / VISION, "data_path": run.world / "llava.json", "image_folder": run.world}
    cpu = {
        "use_liger": False,
        "disable_flash_attn2": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    sizes = {"image_min_pixels": 3136, "image_max_pixels": 12544, "remove_unused_columns": False}
    return [run.tool("python"), "src/train/train_sft.py", *_options(run, **names, **cpu, **sizes)]


def _qwen_vl_finetune(run: Run) -> list[Any]:
    cpu = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    names = {"model_name_or_path": run.world / VISION, "dataset_use": "boxes"}
    parts = {"tune_mm_llm": True, "tune_mm_mlp": True, "model_max_length": 1024}
    launcher = [run.tool("torchrun"), "--standalone", "--nproc_per_node", "1"]
    return [*launcher, run.scripts / "qwen_vl_finetune.py", run.world, *_options(run, **names, **parts, **cpu)]


def _run_clm(run: Run) -> list[Any]:
    lines = run.world / "lines.json"
    names = {"model_name_or_path": run.world / TEXT, "train_file": lines, "validation_file": lines, "block_size": 32}
    script = "examples/pytorch/language-modeling/run_clm.py"
    return [run.tool("python"), script, *_options(run, **names, do_train=True, use_cpu=True)]


AXOLOTL = {"ACCELERATE_USE_CPU": "true", "AXOLOTL_DO_NOT_TRACK": "1"}

CASES = [
    Case(
        "TRL, `trl sft`",
        "trl",
        "",
        TEXT,
        lambda run: [run.tool("trl"), "sft", *_trl(run, TEXT, "text")],
        "A column `tasks` beside `messages`, or beside `prompt` and `completion`. The model may be given by its name. "
        "TRL's fused loss is not used, so its metrics `entropy` and `mean_token_accuracy` are missing. `packing` and "
        "`padding_free` are refused; what TRL's DPO, GRPO and the like train is in [rewards](rewards.md).",
    ),
    Case(
        "TRL, `trl sft`, images",
        "trl",
        "",
        VISION,
        lambda run: [run.tool("trl"), "sft", *_trl(run, VISION, "pictures")],
        "As for text, with a column `images`; the rows reach TRL's own collator as they are.",
    ),
    Case(
        "TRL, `sft.py`",
        "trl",
        "",
        TEXT,
        lambda run: [run.tool("python"), "trl/scripts/sft.py", *_trl(run, TEXT, "text")],
        "Of a clone of huggingface/trl, with the package of the table installed.",
        code="trl",
    ),
    Case(
        "TRL, `sft_vlm.py`",
        "trl",
        "",
        VISION,
        lambda run: [run.tool("python"), "examples/scripts/sft_vlm.py", *_trl(run, VISION, "pictures")],
        "Of a clone of huggingface/trl, with the package of the table installed.",
        code="trl",
    ),
    Case(
        "LlamaFactory, `llamafactory-cli train`",
        "llamafactory",
        "llamafactory",
        VISION,
        lambda run: [run.tool("llamafactory-cli"), "train", run.output / "train.yaml"],
        "A field `tasks` in each record of the data file, whatever `formatting` says. With `packing` each record "
        "becomes a pack of its own, which is slow: switch it off. `use_dft_loss` and the other losses of its own are "
        "refused. A set of `tokenized_path` must be made under `tpo run`.",
        _llamafactory_files,
    ),
    Case(
        "ms-swift, `swift sft`",
        "ms_swift",
        "ms-swift",
        VISION,
        _swift,
        "A field `tasks` in each row (not swift's `objects`, which stay text). `use_logits_to_keep` is switched off. "
        "swift multiplies the loss by the share of a micro-batch's labels, which is taken back. It leaves out rows "
        "that are longer than `max_length` and takes others: a warning names them. `loss_scale`, `enable_dft_loss`, "
        "`enable_channel_loss`, sequence parallelism, packing, and its RLHF trainers are refused.",
        variables={"MAX_PIXELS": "12544"},
    ),
    Case(
        "axolotl, `axolotl train`",
        "axolotl",
        "axolotl",
        TEXT,
        lambda run: [run.tool("axolotl"), "train", run.output / "train.yaml", "--launcher", "python"],
        "A field `tasks` in each row. `sample_packing: false`; no plugin that fuses the loss (`liger`, "
        "`cut_cross_entropy`). Give each run a `dataset_prepared_path` of its own: axolotl uses a set again that "
        "was prepared without TPO, and then the run stops at the first placeholder.",
        _axolotl_files,
        AXOLOTL,
    ),
    Case(
        "unsloth, `FastLanguageModel`",
        "unsloth",
        "unsloth",
        TEXT,
        _script("with_unsloth.py", TEXT, "text/train.jsonl"),
        "A column `tasks`. Tried with text on the CPU, where unsloth uses TRL's trainer. On a GPU, which was not "
        "tried, set UNSLOTH_RETURN_LOGITS=1: its fused loss calls no output embedding.",
    ),
    Case(
        "Qwen-VL-Series-Finetune, `train_sft.py`",
        "",
        "qwen-vl-series-finetune",
        VISION,
        _2u1,
        "Of the repository 2U1/Qwen-VL-Series-Finetune. A field `tasks` in each record of its LLaVA JSON. "
        "Liger is refused: `--use_liger False`. Its classification, DPO and GRPO scripts cannot train heads.",
        variables={"PYTHONPATH": "src:."},
        code="Qwen-VL-Series-Finetune",
    ),
    Case(
        "Qwen3-VL, `qwen-vl-finetune`",
        "",
        "qwen-vl-series-finetune",
        VISION,
        _qwen_vl_finetune,
        "Of the repository QwenLM/Qwen3-VL. A field `tasks` in each record of its JSON. Tried on the CPU, with the one "
        "function of flash_attn that it imports missing and its own `train(attn_implementation='sdpa')`, both in the "
        "script that is named here. `data_flatten` and `data_packing` are refused.",
        variables={"PYTHONPATH": "qwenvl/train:."},
        code="Qwen3-VL/qwen-vl-finetune",
    ),
    Case(
        "Accelerate, a loop without a Trainer",
        "accelerate",
        "",
        TEXT,
        _script("accelerate_loop.py", TEXT, "lines.json"),
        "A field `tasks` in each row. Model, optimizer and loaders go to one call of `Accelerator.prepare`, the loss "
        "is that of the model, and Accelerate accumulates; anything else is refused, with the lines to add or to "
        "change, and so are FSDP and DeepSpeed. TPO is saved by `save_state`, `save_model`, and the `save_pretrained` "
        "of the model. A micro-batch's loss is its part of the step's, times the accumulation.",
    ),
    Case(
        "Lightning, a module",
        "lightning",
        "lightning",
        TEXT,
        _script("lightning_module.py", TEXT, "lines.json"),
        "A field `tasks` in each row of the DataLoaders, wherever these come from. The loss is that of the model; "
        "anything else is refused, with the lines to add, and so are optimization by hand, FSDP and DeepSpeed. "
        "Checkpoints of Lightning have TPO's weights in them; `save_pretrained` of the language model saves TPO beside "
        "it.",
    ),
    Case(
        "transformers, `run_clm.py`",
        "transformers",
        "qwen-vl-series-finetune",
        TEXT,
        _run_clm,
        "Refused: its `group_texts` joins all rows and cuts them into blocks, through tasks and between a trigger and "
        "its task token.",
        code="transformers",
        refused="group_texts joins rows (packing), so their tasks cannot be told apart",
    ),
]
