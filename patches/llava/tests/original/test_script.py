"""`tpo run` on the original LLaVA's own training script, as it was published."""

from __future__ import annotations

import importlib.util
import re
import sys

import torch
from llava_scripts import make_language_model, options_of, tpo_run, write_records
from tiny_llava import package_of, tokenizer

import tpo_plugin as tpo


def test_its_training_script(tower, tmp_path):
    script = importlib.util.find_spec(f"{package_of('original')}.train.train").origin
    options = {
        "model_name_or_path": make_language_model(tmp_path / "llama", "original"),
        "version": "plain",
        "data_path": write_records(tmp_path),
        "image_folder": tmp_path,
        "image_aspect_ratio": "pad",
        "vision_tower": tower,
        "output_dir": tmp_path / "out",
        "group_by_modality_length": True,
    }
    result = tpo_run(sys.executable, script, *options_of(**options))
    assert result.returncode == 0, result.stderr[-3000:]
    losses = [float(value) for value in re.findall(r"'loss_region': ([0-9.]+)", result.stdout)]
    assert len(losses) == 2
    assert losses[0] != losses[1]
    module = importlib.import_module(f"{package_of('original')}.model.language_model.llava_llama")
    model = module.LlavaLlamaForCausalLM.from_pretrained(tmp_path / "out")
    model = tpo.load_tpo(model, tmp_path / "out")
    assert model.tpo.token_ids["region"][0] == len(tokenizer())
    assert (model.tpo.embeddings["region"].output != 0).any()
    assert all(torch.isfinite(p).all() for p in model.tpo.parameters())
