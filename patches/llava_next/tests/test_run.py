"""`tpo run` on LLaVA-NeXT's own training script, or, with a derivative, on a script around the derivative's trainer."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from llava_scripts import make_language_model, options_of, tpo_run, write_records
from tiny_llava import SIDE, build, package_of, tokenizer

import tpo_plugin as tpo

PACKAGE = package_of("next")

CPU = "import torch\ntorch.cuda.synchronize = lambda *args, **kwargs: None\n"
"""LLaVA-NeXT's script calls it at its end, which fails without a GPU."""

SCRIPT = """
import copy, json, sys, time
import torch
from torch.utils.data import Dataset
from transformers import AutoTokenizer, CLIPImageProcessor, TrainingArguments
from PIL import Image
from PACKAGE.model.language_model.llava_qwen import LlavaQwenForCausalLM
from PACKAGE.train.llava_trainer import LLaVATrainer

host, tower, data, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(host)
model = LlavaQwenForCausalLM.from_pretrained(host)
if not model.get_vision_tower().is_loaded:
    model.get_vision_tower().load_model()
processor = CLIPImageProcessor.from_pretrained(tower)

class DataArguments:
    image_folder = str(__import__("pathlib").Path(data).parent)

class LazySupervisedDataset(Dataset):
    def __init__(self):
        self.list_data_dict, self.data_args = json.load(open(data)), DataArguments()

    @property
    def modality_lengths(self):
        return [len(record["conversations"][0]["value"]) for record in self.list_data_dict]

    def __len__(self):
        return len(self.list_data_dict)

    def __getitem__(self, i):
        try:
            return self._get_item(i)
        except Exception as error:
            print("failed to fetch sample", i, error)
            return self._get_item(i + 1)

    def _get_item(self, i):
        record = copy.deepcopy(self.list_data_dict[i])
        question, answer = (turn["value"] for turn in record["conversations"])
        prompt = [-200] + tokenizer(question.replace("<image>", "")).input_ids
        ids = prompt + tokenizer(answer).input_ids
        image = Image.open(DataArguments.image_folder + "/" + record["image"])
        pixels = processor.preprocess(image, return_tensors="pt")["pixel_values"]
        labels = [-100] * len(prompt) + ids[len(prompt):]
        return dict(input_ids=torch.tensor(ids), labels=torch.tensor(labels), image=[(pixels, image.size, "image")])

def collate(instances):
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([i["input_ids"] for i in instances], batch_first=True, padding_value=tokenizer.pad_token_id)
    media = [image for instance in instances for image in instance["image"]]
    return dict(
        input_ids=ids,
        labels=pad([i["labels"] for i in instances], batch_first=True, padding_value=-100),
        attention_mask=ids.ne(tokenizer.pad_token_id),
        images=[pixels for pixels, _, _ in media],
        image_sizes=[size for _, size, _ in media],
        modalities=[modality for _, _, modality in media],
    )

args = TrainingArguments(
    output_dir=out, max_steps=2, save_strategy="no", learning_rate=1e-2, per_device_train_batch_size=2, use_cpu=True,
    remove_unused_columns=False, report_to=[], logging_steps=1,
)
for name in ("group_by_modality_length_auto", "group_by_varlen", "verbose_logging", "tune_mm_mlp_adapter"):
    setattr(args, name, False)
args.group_by_modality_length, args.mm_projector_lr, args.mm_vision_tower_lr = True, None, None
args.mm_tunable_parts = "mm_mlp_adapter,mm_language_model"
trainer = LLaVATrainer(
    model=model, tokenizer=tokenizer, args=args, train_dataset=LazySupervisedDataset(), data_collator=collate
)
trainer.train()
model.save_pretrained(out)
"""


def command(tower: Path, folder: Path, data: Path) -> tuple[list[Any], tuple[Path, ...]]:
    """The script with its arguments, and what must be on PYTHONPATH."""
    if PACKAGE == "llava":
        script = Path(importlib.util.find_spec("llava.train.train").origin).with_name("train_mem.py")
        options = {
            "model_name_or_path": make_language_model(folder / "qwen", "next"),
            "version": "qwen_1_5",
            "data_path": data,
            "image_folder": folder,
            "image_aspect_ratio": "anyres_max_9",
            "image_grid_pinpoints": json.dumps([[SIDE * i, SIDE * j] for i in (1, 2) for j in (1, 2)]),
            "mm_patch_merge_type": "spatial_unpad",
            "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
            "vision_tower": tower,
            "attn_implementation": "sdpa",
            "group_by_modality_length": True,
            "output_dir": folder / "out",
        }
        (folder / "cpu").mkdir()
        (folder / "cpu" / "sitecustomize.py").write_text(CPU)
        return [sys.executable, script, *options_of(**options)], (script.parents[2], folder / "cpu")
    build("next", tower).save_pretrained(folder / "host")
    tokenizer().save_pretrained(folder / "host")
    (folder / "train.py").write_text(SCRIPT.replace("PACKAGE", str(PACKAGE)))
    return [sys.executable, folder / "train.py", folder / "host", tower, data, folder / "out"], ()


def test_a_training_script_as_it_is(tower, tmp_path):
    line, paths = command(tower, tmp_path, write_records(tmp_path))
    result = tpo_run(*line, paths=paths)
    assert result.returncode == 0, result.stderr[-3000:]
    losses = [float(value) for value in re.findall(r"'loss_region': ([0-9.]+)", result.stdout)]
    assert len(losses) == 2
    assert losses[0] != losses[1]
    module = importlib.import_module(f"{PACKAGE}.model.language_model.llava_qwen")
    model = tpo.load_tpo(module.LlavaQwenForCausalLM.from_pretrained(tmp_path / "out"), tmp_path / "out")
    assert (model.tpo.embeddings["region"].output != 0).any()
    assert all(torch.isfinite(p).all() for p in model.tpo.parameters())


@pytest.mark.slow
def test_a_record_that_is_wrong_ends_the_run(tower, tmp_path):
    """The datasets of LLaVA-NeXT go on with another record where one fails; a wrong task must not be lost so."""
    data = write_records(tmp_path)
    records = json.loads(data.read_text())
    records[2]["tasks"][0]["boxes"] = [[0.5, 0.5, 0.1, 0.6]]
    data.write_text(json.dumps(records))
    line, paths = command(tower, tmp_path, data)
    result = tpo_run(*line, paths=paths)
    assert result.returncode != 0
    assert "record 2 (id 2): tasks[0].boxes[0]" in result.stderr
