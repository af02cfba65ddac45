"""`tpo run` on scripts that know nothing of it, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ranks import free_port
from transformers import AutoModelForCausalLM

import tpo_plugin as tpo
from tpo_plugin.testing import tiny_host

RAW_ROWS = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

host, data, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(host)
model = AutoModelForCausalLM.from_pretrained(host)
rows = [json.loads(line) for line in open(data)]

def collate(rows):
    texts = [" ".join(turn["content"] for turn in row["messages"]) + " </s>" for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] == tokenizer.pad_token_id, -100)
    return batch

args = TrainingArguments(
    output_dir=out, max_steps=2, save_steps=1, per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=1,
    report_to=[], use_cpu=True, remove_unused_columns=False,
)
trainer = Trainer(model, args, train_dataset=rows, data_collator=collate)
trainer.train()
assert type(trainer).__name__ == "TPOTrainer" and isinstance(trainer, Trainer)
model.save_pretrained(out)
import sys; sys.stdout.write("LOG " + json.dumps(trainer.state.log_history) + "\\n")
"""

TOKENISED_ROWS = """
import sys
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

host, data, out = sys.argv[1:]

class MyTrainer(Trainer):
    def __init__(self, note, **kwargs):
        super().__init__(**kwargs)
        self.note = note

tokenizer = AutoTokenizer.from_pretrained(host)
model = AutoModelForCausalLM.from_pretrained(host)
dataset = Dataset.from_json(data)

def tokenise(row):
    ids = tokenizer(row["text"])["input_ids"]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(ids)}

dataset = dataset.map(tokenise)
args = TrainingArguments(
    output_dir=out, max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, logging_steps=1
)
trainer = MyTrainer("mine", model=model, args=args, train_dataset=dataset)
trainer.train()
assert trainer.note == "mine"
print("LOG", trainer.state.log_history)
"""


def tpo_run(*arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from tpo_plugin.cli import main; main()", "run", *map(str, arguments)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=1100)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host")
    model, tokenizer = tiny_host()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def script(folder: Path, text: str, rows: list[dict[str, Any]] | None = None) -> list[str]:
    (folder / "train.py").write_text(text)
    with (folder / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows or [])
    return [sys.executable, str(folder / "train.py")]


def log_of(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr[-3000:]
    return next(line for line in result.stdout.splitlines() if line.startswith("LOG "))[4:]


def box(*numbers: float) -> dict[str, Any]:
    return {"head": "region", "boxes": [list(numbers)]}


@pytest.mark.slow
def test_a_script_with_a_collator_of_its_own(host, tmp_path):
    turns = [{"role": "user", "content": "where is the circle"}, {"role": "assistant", "content": "it stands <region>"}]
    rows = [{"messages": turns, "tasks": [box(0.1, 0.2, 0.3, 0.4)]}] * 3 + [{"messages": turns[:1]}]
    command = [*script(tmp_path, RAW_ROWS, rows), host, tmp_path / "rows.jsonl", tmp_path / "out"]
    config = tmp_path / "tpo.yaml"
    config.write_text("loss_weights: {region: 0.25}\nheads: {region: {trigger: '<where>'}}\n")
    history = json.loads(log_of(tpo_run("--heads", "region", "--config", config, "--", *command)))
    assert all(log["loss_region"] > 0 and log["loss_assign"] > 0 for log in history if "loss" in log)
    assert (tmp_path / "out" / "checkpoint-1" / "tpo_model.safetensors").is_file()
    model = tpo.load_tpo(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), tmp_path / "out")
    torch.manual_seed(0)
    fresh = tpo.apply_tpo(*tiny_host(), heads=["region"])
    assert not torch.equal(model.tpo.embeddings["region"].task, fresh.tpo.embeddings["region"].task)
    assert (model.tpo.tokens["region"].trigger, model.tpo.config.loss_weights) == ("<where>", {"region": 0.25})
    # The host's own weights were trained by the script, and saved without ours.
    assert not torch.equal(model.lm_head.weight[:12], fresh.lm_head.weight[:12])


@pytest.mark.slow
def test_torchrun_on_two_ranks(host, tmp_path):
    """Both train the same losses, which are those of one process with their batches together, and TPO is saved once."""
    turns = [{"role": "user", "content": "where is the circle"}, {"role": "assistant", "content": "it stands <region>"}]
    rows = [{"messages": turns, "tasks": [box(0.1 * i, 0.2, 0.6, 0.4)]} for i in range(3)] + [{"messages": turns[:1]}]
    text = RAW_ROWS.replace("model.save_pretrained(out)", "trainer.save_model(out)")
    text = "import torch\ntorch.manual_seed(0)\n" + text  # the new rows are random
    python, *command = [*script(tmp_path, text, rows * 2), host, tmp_path / "rows.jsonl"]
    launcher = [python, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    two = tpo_run("--heads", "region", "--", *launcher, *command, tmp_path / "two")
    assert two.returncode == 0, two.stderr[-3000:]
    found = [json.loads(line[4:]) for line in two.stdout.splitlines() if line.startswith("LOG ")]
    assert len(found) == 2
    histories = [[log["loss"] for log in history if "loss" in log] for history in found]
    assert histories[0] == histories[1]
    model = tpo.load_tpo(AutoModelForCausalLM.from_pretrained(tmp_path / "two"), tmp_path / "two")
    assert model.tpo.embeddings["region"].output.any()
    assert not list((tmp_path / "two").glob(".*.tmp"))

    (tmp_path / "train.py").write_text(text.replace("train_batch_size=2", "train_batch_size=4"))
    one = tpo_run("--heads", "region", "--", python, *command, tmp_path / "one")
    assert [log["loss"] for log in json.loads(log_of(one)) if "loss" in log] == pytest.approx(histories[0], rel=1e-5)


@pytest.mark.slow
def test_a_script_that_tokenises_before_it_makes_its_trainer(host, tmp_path):
    pytest.importorskip("datasets")
    rows = [{"text": "where is it it stands <box_begin><boxes> here", "tasks": [box(0, 0, 0.5, 0.5)]}] * 4
    command = [*script(tmp_path, TOKENISED_ROWS, rows), host, tmp_path / "rows.jsonl", tmp_path / "out"]
    log = log_of(tpo_run("--heads", "region", "--", *command))
    assert "loss_region" in log
    assert (tmp_path / "out" / "tpo_model.safetensors").is_file()


def test_a_command_without_a_trainer_is_an_error(tmp_path):
    result = tpo_run("--heads", "region", "--", *script(tmp_path, "print('nothing trained')"))
    assert result.returncode == 1
    assert "ended without making a transformers Trainer" in result.stderr


@pytest.mark.slow
def test_a_launcher_that_forks_is_an_error(host, tmp_path):
    """And what it left in the background does not train."""
    python, *command = script(tmp_path, RAW_ROWS, [{"messages": [{"role": "user", "content": "where"}]}])
    given = [*command, str(host), str(tmp_path / "rows.jsonl"), str(tmp_path / "out")]
    forking = f"import subprocess, sys\nopen('pid', 'w').write(str(subprocess.Popen({[python, *given]!r},"
    (tmp_path / "launch.py").write_text(
        forking.replace("'pid'", repr(str(tmp_path / "pid")))
        + f" stderr=open({str(tmp_path / 'log')!r}, 'w'), start_new_session=True).pid))"
    )
    result = tpo_run("--heads", "region", "--", python, str(tmp_path / "launch.py"))
    assert result.returncode == 1
    assert "a launcher must stay in the foreground" in result.stderr
    with contextlib.suppress(psutil.NoSuchProcess):
        background = psutil.Process(int((tmp_path / "pid").read_text()))
        while background.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.2)
    assert "tpo run has ended: its command went into the background" in (tmp_path / "log").read_text()
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_the_exit_status_is_the_commands(tmp_path):
    assert tpo_run("--heads", "region", "--", *script(tmp_path, "raise SystemExit(7)")).returncode == 7


def test_the_environments_own_sitecustomize_still_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('own sitecustomize')")
    command = script(tmp_path, "raise SystemExit(3)")
    result = tpo_run("--heads", "region", "--", *command, PYTHONPATH=str(tmp_path))
    assert result.returncode == 3
    assert result.stdout.count("own sitecustomize") == 2  # of tpo run itself, and of the script


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A Python without any package, and the folder of a package `transformers` that it can be given."""
    venv.create(tmp_path / "foreign", symlinks=True)
    (tmp_path / "packages" / "transformers").mkdir(parents=True)
    (tmp_path / "packages" / "transformers" / "__init__.py").touch()
    (tmp_path / "packages" / "transformers" / "trainer.py").write_text("print('trainer imported')")
    return next((tmp_path / "foreign").glob("*/python"))


def test_a_python_without_tpo_plugin_that_trains_nothing_is_unharmed(foreign, tmp_path):
    code = f"import subprocess\nprint(subprocess.run([{str(foreign)!r}, '-c', 'import json; print(1 + 1)'], text=True,"
    result = tpo_run("--heads", "region", "--", *script(tmp_path, code + " capture_output=True))"))
    assert "returncode=0, stdout='2\\n', stderr=''" in result.stdout, result.stderr


def test_a_python_without_tpo_plugin_may_not_train(foreign, tmp_path):
    code = "try:\n    import transformers.trainer\nexcept Exception:\n    pass\nprint('went on')"
    result = tpo_run("--heads", "region", "--", foreign, "-c", code, PYTHONPATH=str(tmp_path / "packages"))
    assert result.returncode == 1
    assert f"tpo run: this Python ({foreign}) cannot use tpo-plugin; is it installed there?" in result.stderr
    assert "No module named 'tpo_plugin'" in result.stderr
    assert not result.stdout


def test_a_tool_with_a_python_of_its_own_gets_nothing_of_ours(foreign, tmp_path):
    """Also where it imports transformers: the script, whose Python has tpo-plugin, may train beside it."""
    tool = (
        "import os, sys, transformers.trainer\n"
        "print([name for name in os.environ if name.startswith('TPO_SCRIPT')], os.environ['PYTHONPATH'],"
        " [path for path in sys.path if 'tpo_plugin' in path])"
    )
    code = (
        f"import subprocess\nprint(subprocess.run([{str(foreign)!r}, '-c', {tool!r}], text=True, capture_output=True))"
    )
    packages = str(tmp_path / "packages")
    result = tpo_run("--heads", "region", "--", *script(tmp_path, code), PYTHONPATH=packages)
    assert f"returncode=0, stdout='trainer imported\\n[] {packages} []\\n', stderr=''" in result.stdout, result


@pytest.mark.parametrize("module", ["settings", "imports"])
def test_a_process_that_trains_nothing_loads_no_torch(module):
    code = f"import sys, tpo_plugin.script.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("heads", "message"),
    [("regoin", "head 'regoin' is not installed; did you mean 'region'"), (" , ", "names no head")],
)
def test_a_wrong_head_is_refused_at_once(tmp_path, heads, message):
    result = tpo_run("--heads", heads, "--", *script(tmp_path, "print('started')"))
    assert result.returncode == 1
    assert message in result.stderr
    assert "started" not in result.stdout
