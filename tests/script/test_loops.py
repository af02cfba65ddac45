"""`tpo run` on scripts with a loop of their own: refused by name, with the lines to add, with which they train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tpo_plugin.script.loops import LINES
from tpo_plugin.testing import tiny_host

START = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

host, data, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(host)
model = AutoModelForCausalLM.from_pretrained(host)
rows = [json.loads(line) for line in open(data)]

def collate(rows):
    batch = tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    return {**batch, "labels": batch["input_ids"].clone()}

"""

ACCELERATE = """
from accelerate import Accelerator

loader = torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=collate)
accelerator = Accelerator(cpu=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for batch in loader:
    loss = model(**batch).loss
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    print("LOSS", float(loss))
"""

LIGHTNING = """
import lightning

class Module(lightning.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, index):
        loss = self.model(**batch).loss
        print("LOSS", float(loss))
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

loader = torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=collate)
trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False)
trainer.fit(Module(model), loader)
"""


def run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    model, tokenizer = tiny_host()
    model.save_pretrained(folder / "host")
    tokenizer.save_pretrained(folder / "host")
    row = {"text": "it stands <region> here", "tasks": [{"head": "region", "boxes": [[0.1, 0.2, 0.3, 0.4]]}]}
    (folder / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    (folder / "train.py").write_text(text)
    start = [sys.executable, "-c", "from tpo_plugin.cli import main; main()", "run", "--heads", "region", "--"]
    command = [*start, sys.executable, folder / "train.py", folder / "host", folder / "rows.jsonl", folder / "out"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=variables, timeout=280, check=False
    )


LOOPS = pytest.mark.parametrize(
    ("package", "loop", "name"),
    [("accelerate", ACCELERATE, "accelerate.Accelerator"), ("lightning", LIGHTNING, "lightning.Trainer")],
)


@pytest.mark.slow
@LOOPS
def test_a_loop_without_a_trainer_is_refused(tmp_path, package, loop, name):
    pytest.importorskip(package)
    refused = run(tmp_path, START + loop)
    assert refused.returncode == 1
    assert f"this script trains with {name} and a loop of its own, in which there is no transformers" in refused.stderr
    assert "LOSS" not in refused.stdout
    assert LINES.format(heads=["region"]) in refused.stderr


@pytest.mark.slow
@LOOPS
def test_with_the_lines_that_are_named_it_trains(tmp_path, package, loop, name):
    pytest.importorskip(package)
    lines = [line.split("#")[0].strip() for line in LINES.format(heads=["region"]).strip().splitlines()]
    *before, step, save = lines
    assert step in loop.replace("self.model", "model")
    trained = run(tmp_path, "\n".join([START, *before, loop, save.replace("output_dir", "out")]))
    assert trained.returncode == 0, trained.stderr[-3000:]
    losses = [float(line.split()[1]) for line in trained.stdout.splitlines() if line.startswith("LOSS")]
    assert losses[1] < losses[0]
    assert (tmp_path / "out" / "tpo_model.safetensors").is_file()
