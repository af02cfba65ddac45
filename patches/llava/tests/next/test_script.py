"""`tpo run` on LLaVA-NeXT's own training script, or, with a derivative, on a script around the derivative's trainer."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from llava_scripts import make_language_model, options_of, tpo_run, write_records
from tiny_llava import SIDE, build, package_of, tokenizer

import tpo_plugin as tpo

PACKAGE = package_of("next")
EXAMPLE = Path(__file__).parents[4] / "examples" / "llava_onevision"

CPU = "import torch\ntorch.manual_seed(0)\ntorch.cuda.synchronize = lambda *args, **kwargs: None\n"
"""LLaVA-NeXT's script draws what it does not load, and calls at its end what fails without a GPU."""

OPTIONS: dict[str, Any] = {
    "max_steps": 2, "save_strategy": "no", "learning_rate": 1e-2, "logging_steps": 1, "use_cpu": True, "bf16": False,
    "per_device_train_batch_size": 2,
}  # fmt: skip
"""Arguments of both scripts."""

SCRIPT = """
import copy, json, sys, time
import torch
from torch.utils.data import Dataset
from transformers import AutoTokenizer, CLIPImageProcessor, TrainingArguments
from PIL import Image
from PACKAGE.model.language_model.llava_qwen import LlavaQwenForCausalLM
from PACKAGE.train.llava_trainer import LLaVATrainer

host, tower, data, out, options = sys.argv[1:]
args = TrainingArguments(output_dir=out, remove_unused_columns=False, report_to=[], **json.loads(options))
for name in ("group_by_modality_length_auto", "group_by_varlen", "verbose_logging", "tune_mm_mlp_adapter"):
    setattr(args, name, False)
args.group_by_modality_length, args.mm_projector_lr, args.mm_vision_tower_lr = True, None, None
args.mm_tunable_parts = "mm_mlp_adapter,mm_language_model"
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

torch.manual_seed(0)
trainer = LLaVATrainer(
    model=model, tokenizer=tokenizer, args=args, train_dataset=LazySupervisedDataset(), data_collator=collate
)
trainer.train()
if trainer.is_deepspeed_enabled:
    trainer.save_model(out)
else:
    model.save_pretrained(out)
"""


def command(tower: Path, folder: Path, *launcher: str, **options: Any) -> tuple[list[Any], tuple[Path, ...]]:
    """The script with its arguments, and what must be on PYTHONPATH; records are in the folder, `out` will be."""
    data, launcher = folder / "records.json", launcher or (sys.executable,)
    options = OPTIONS | options
    if PACKAGE == "llava":
        script = Path(importlib.util.find_spec("llava.train.train").origin).with_name("train_mem.py")
        own = {
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
        return [*launcher, script, *options_of(**own, **options)], (script.parents[2], folder / "cpu")
    build("next", tower).save_pretrained(folder / "host")
    tokenizer().save_pretrained(folder / "host")
    (folder / "train.py").write_text(SCRIPT.replace("PACKAGE", str(PACKAGE)))
    arguments = [folder / "host", tower, data, folder / "out", json.dumps(options, default=str)]
    return [*launcher, folder / "train.py", *arguments], ()


def run(tower: Path, folder: Path, *launcher: str, **options: Any) -> tuple[list[dict[str, float]], Any]:
    """Trains by `tpo run` on four records; what was logged at each step, and the model that the script left behind."""
    folder.mkdir(exist_ok=True)
    write_records(folder)
    line, paths = command(tower, folder, *launcher, **options)
    result = tpo_run(*line, paths=paths)
    assert result.returncode == 0, result.stderr[-3000:]
    logs = [ast.literal_eval(found) for found in re.findall(r"{'loss'.*?}", result.stdout)]
    module = importlib.import_module(f"{PACKAGE}.model.language_model.llava_qwen")
    return logs, tpo.load_tpo(module.LlavaQwenForCausalLM.from_pretrained(folder / "out"), folder / "out")


def test_a_training_script_as_it_is(tower, tmp_path):
    logs, model = run(tower, tmp_path, bf16=True)
    first, second = (log["loss_region"] for log in logs)
    assert first != second
    assert (model.tpo.embeddings["region"].output != 0).any()
    assert all(torch.isfinite(p).all() for p in model.tpo.parameters())


@pytest.mark.timeout(1800)
def test_deepspeed_on_two_ranks(tower, tmp_path):
    """The example's DeepSpeed files with accumulation give what one process gives of whole batches."""

    def on_ranks(number: int, stage: int, folder: str, **options: Any) -> tuple[list[dict[str, float]], Any]:
        launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(number), ranks.__file__)
        file = EXAMPLE / f"zero{stage}.json"
        return run(tower, tmp_path / folder, *launcher, optim="sgd", use_cpu=False, deepspeed=file, **options)

    if PACKAGE == "llava":  # without DeepSpeed its script computes the vision tower in float16
        wanted_logs, wanted = on_ranks(1, 2, "one", per_device_train_batch_size=4)
    else:
        wanted_logs, wanted = run(tower, tmp_path / "one", optim="sgd", per_device_train_batch_size=4)
    for stage in (2, 3):
        logs, model = on_ranks(2, stage, str(stage), per_device_train_batch_size=1, gradient_accumulation_steps=2)
        assert len(logs) == len(wanted_logs) == 2
        for log, one in zip(logs, wanted_logs, strict=True):
            names = ["loss", "grad_norm", *(name for name in one if name.startswith("loss_"))]
            assert {name: log[name] for name in names} == pytest.approx({name: one[name] for name in names}, rel=1e-4)
        states = model.state_dict()
        for name, value in wanted.state_dict().items():
            torch.testing.assert_close(states[name], value, msg=f"{name}, ZeRO-{stage}")


@pytest.mark.slow
def test_a_record_that_is_wrong_ends_the_run(tower, tmp_path):
    """The datasets of LLaVA-NeXT go on with another record where one fails; a wrong task must not be lost so."""
    data = write_records(tmp_path)
    records = json.loads(data.read_text())
    records[2]["tasks"][0]["boxes"] = [[0.5, 0.5, 0.1, 0.6]]
    data.write_text(json.dumps(records))
    line, paths = command(tower, tmp_path)
    result = tpo_run(*line, paths=paths)
    assert result.returncode != 0
    assert "record 2 (id 2): tasks[0].boxes[0]" in result.stderr
