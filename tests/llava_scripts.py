"""What LLaVA's own training scripts need, tiny, and `tpo run` on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tiny_llava import settings, tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM


def make_language_model(folder: Path, family: str) -> Path:
    """The plain language model that LLaVA's training scripts start from, with its tokenizer."""
    config_class, model_class = {
        "next": (Qwen2Config, Qwen2ForCausalLM),
        "original": (LlamaConfig, LlamaForCausalLM),
    }[family]
    torch.manual_seed(0)
    model_class(config_class(**settings(None))).save_pretrained(folder)
    tok = tokenizer()
    tok.unk_token = None if family == "next" else "<|endoftext|>"
    tok.save_pretrained(folder)
    return folder


def write_records(folder: Path, number: int = 4) -> Path:
    """LLaVA's JSON with `number` records of a picture, each with a box to predict."""
    records = []
    for index in range(number):
        Image.new("RGB", (80, 60 + index), (40 * index, 90, 200)).save(folder / f"{index}.png")
        box = [0.1, 0.1, 0.5, 0.2 + 0.1 * index]
        records.append(
            {
                "id": str(index),
                "image": f"{index}.png",
                "conversations": [
                    {"from": "human", "value": "<image>\nwhere is it"},
                    {"from": "gpt", "value": "it is here: <region>."},
                ],
                "tasks": [{"head": "region", "boxes": [box]}],
            }
        )
    (folder / "records.json").write_text(json.dumps(records))
    return folder / "records.json"


def tpo_run(*command: Any, paths: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`tpo run --heads region -- command` in a process of its own, with `paths` on PYTHONPATH."""
    start = [sys.executable, "-c", "from tpo_plugin.cli import main; main()", "run", "--heads", "region", "--"]
    path = os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    return subprocess.run(
        [*start, *map(str, command)], capture_output=True, text=True, env=variables, timeout=1100, check=False
    )


def options_of(**options: Any) -> list[str]:
    """Command line options of LLaVA's training scripts, for two steps on the CPU."""
    given = {
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "bf16": True,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "model_max_length": 512,
        "gradient_checkpointing": True,
        "lazy_preprocess": True,
        "report_to": "none",
        "use_cpu": True,
    } | options
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]
