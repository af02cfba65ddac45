"""The arguments of examples/llava_onevision/llava_next.sh are LLaVA's, and train a tiny host."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from tiny_llava import make_trainer, package_of, tokenizer
from tpo_patch_llava.host import LlavaNextHost
from transformers import HfArgumentParser
from transformers.integrations import unset_hf_deepspeed_config

import tpo_plugin as tpo

EXAMPLE = Path(__file__).parents[4] / "examples" / "llava_onevision"
PACKAGE = package_of("next")


@pytest.fixture(autouse=True)
def no_deepspeed_afterwards() -> Iterator[None]:
    """TrainingArguments with a DeepSpeed file switch it on in the environment, for every later trainer."""
    with mock.patch.dict(os.environ):
        yield
    unset_hf_deepspeed_config()
    AcceleratorState._reset_state(reset_partial_state=True)


def command(folder: Path, *arguments: str) -> list[str]:
    """What the script starts `tpo` with."""
    (folder / "tpo").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / "tpo").chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        [EXAMPLE / "llava_next.sh", *arguments], env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def parsed(arguments: list[str], folder: Path) -> tuple[Any, Any, Any]:
    """As LLaVA's train() parses them, on the CPU; an argument that it does not know is an error."""
    module = importlib.import_module(f"{PACKAGE}.train.train")
    parser = HfArgumentParser((module.ModelArguments, module.DataArguments, module.TrainingArguments))
    here = ["--use_cpu", "True", "--report_to", "none", "--output_dir", str(folder / "run")]
    return parser.parse_args_into_dataclasses([*arguments, *here])


@pytest.mark.parametrize("stage", [None, 2, 3])
def test_its_arguments(tmp_path: Path, stage: int | None) -> None:
    more = [] if stage is None else ["--", "--deepspeed", str(EXAMPLE / f"zero{stage}.json")]
    started = command(tmp_path, "torchrun", "--nproc_per_node", "8", *more)
    script = started.index("llava/train/train_mem.py")
    assert started[: script + 1] == [
        "run", "--heads", "region,temporal", "--", "torchrun", "--nproc_per_node", "8", "llava/train/train_mem.py",
    ]  # fmt: skip
    model, data, training = parsed(started[script + 1 :], tmp_path)
    assert model.vision_tower == "google/siglip-so400m-patch14-384"
    assert data.image_aspect_ratio == "anyres_max_9"
    assert training.attn_implementation == "sdpa"  # no GPU here
    if stage is not None:
        assert training.hf_deepspeed_config.config["zero_optimization"]["stage"] == stage


def test_they_train(build: Any, echo: str, tmp_path: Path) -> None:
    started = command(tmp_path, "python", "--", "--gradient_accumulation_steps", "2")
    training = parsed(started[started.index("llava/train/train_mem.py") + 1 :], tmp_path)[2]
    names = ("lora_enable", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate")
    names += ("weight_decay", "lr_scheduler_type", "group_by_modality_length", "gradient_checkpointing")
    targets = r"model\.layers\..*\.(q|v)_proj"
    lora = LoraConfig(r=training.lora_r, lora_alpha=training.lora_alpha, target_modules=targets)
    model = tpo.apply_tpo(get_peft_model(build(), lora), tokenizer(), heads=["echo"])
    model.enable_input_require_grads()
    module = importlib.import_module(f"{PACKAGE}.train.llava_trainer")
    trainer = make_trainer(
        tpo.wrap_trainer(LlavaNextHost.trainer_class(module.LLaVATrainer)), model, tmp_path / "run",
        **{name: getattr(training, name) for name in names}, max_steps=1, mm_projector_lr=None,
    )  # fmt: skip
    before = {name: value.clone() for name, value in model.tpo.state_dict().items()}
    trainer.train()
    assert any((before[name] != value).any() for name, value in model.tpo.state_dict().items())
