"""`tpo run` on scripts with a loop of their own: they train as they are, or are refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import tpo_plugin as tpo
from tpo_plugin.script import loops
from tpo_plugin.script.settings import ScriptSettings
from tpo_plugin.testing import tiny_host

TASK = {"text": "it stands <region> here", "tasks": [{"head": "region", "boxes": [[0.1, 0.2, 0.3, 0.4]]}]}
ROWS = [TASK, {"text": "it stands here"}, TASK, {**TASK, "text": "<region>"}]

Train = Callable[..., None]


@pytest.fixture
def start(tmp_path, monkeypatch) -> Any:
    """A loop's parts: (accelerator, model, optimizer, loader of `size` rows, held-out loader, marker file)."""
    monkeypatch.setattr(loops, "made", False)
    host, tokenizer = tiny_host()
    host.save_pretrained(tmp_path / "host")
    tokenizer.save_pretrained(tmp_path / "host")
    owner = type("Accelerator", (Accelerator,), {})
    loops.hook_accelerate(
        SimpleNamespace(Accelerator=owner), ScriptSettings(heads=["region"], marker=str(tmp_path / "marker"))
    )

    def parts(size: int, steps: int = 1, rows: list[Any] | None = None) -> Any:
        torch.manual_seed(0)
        model = type(host).from_pretrained(tmp_path / "host")
        known = type(tokenizer).from_pretrained(tmp_path / "host")

        def collate(given: list[Any]) -> Any:
            batch = known([row["text"] for row in given], return_tensors="pt", padding=True)
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}

        from tpo_plugin.script.trainer import add_head_tokens

        add_head_tokens(known, ScriptSettings(heads=["region"]))  # as where it is loaded under tpo run
        loaders = [
            torch.utils.data.DataLoader(rows or ROWS, batch_size=number, collate_fn=collate) for number in (size, 2)
        ]
        accelerator = owner(cpu=True, gradient_accumulation_steps=steps)
        return accelerator, model, torch.optim.SGD(model.parameters(), lr=1e-2), *loaders

    return parts


def train(accelerator: Any, model: Any, optimizer: Any, loader: Any, held_out: Any, out: Path) -> Any:
    """Losses of three epochs and of an evaluation behind each."""
    model, optimizer, loader, held_out = accelerator.prepare(model, optimizer, loader, held_out)
    losses, evaluations = [], []
    for _ in range(3):
        model.train()
        total = 0.0
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            total += float(loss.detach()) / accelerator.gradient_accumulation_steps
        losses.append(total)
        model.eval()
        with torch.no_grad():
            evaluations += [float(model(**batch).loss) for batch in held_out]
    accelerator.save_state(str(out / "state"))
    accelerator.save_model(model, str(out / "model"))
    accelerator.unwrap_model(model).save_pretrained(out)
    return losses, evaluations, accelerator.unwrap_model(model)


def test_four_batches_of_one_are_a_batch_of_four(start, tmp_path):
    losses, evaluations, model = train(*start(4), tmp_path / "a")
    assert losses[2] < losses[1] < losses[0]
    again, measured, other = train(*start(1, 4), tmp_path / "b")
    assert again == pytest.approx(losses, rel=1e-5)
    assert measured == pytest.approx(evaluations, rel=1e-5)
    for (name, one), four in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(one, four, msg=name)
    assert (tmp_path / "marker").read_text() == "accelerate.Accelerator\n" * 2


def test_a_last_step_that_is_shorter(start, tmp_path):
    """Of four rows three are a step, and the fourth is one: both ways."""
    losses, *_ = train(*start(1, 3), tmp_path / "a")
    whole, *_ = train(*start(3), tmp_path / "b")
    assert losses == pytest.approx(whole, rel=1e-5)


def test_the_rest_of_an_epoch_is_counted_too(start):
    """A loop that goes on skips the batches that it has had, with a loader that Accelerate makes anew."""
    accelerator, model, optimizer, loader, _ = start(1, 2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    model.train()
    batches = list(accelerator.skip_first_batches(loader, 2))
    assert len(batches) == 2
    assert all("task_counts" in batch for batch in batches)
    for batch in batches:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)


def test_all_that_is_new_is_trained_and_saved(start, tmp_path):
    parts = start(4)
    torch.manual_seed(3)
    _, _, model = train(*parts, tmp_path / "out")
    for place in ("out", "out/state", "out/model"):
        host = type(model).from_pretrained(tmp_path / "out")
        loaded = tpo.load_tpo(host, tmp_path / place, model.tpo.tokenizer)
        for (name, one), other in zip(model.tpo.state_dict().items(), loaded.tpo.state_dict().values(), strict=True):
            torch.testing.assert_close(one, other, msg=name)
    held = {id(p) for group in parts[2].param_groups for p in group["params"]}
    assert all(id(p) in held for p in model.tpo.parameters() if p.requires_grad)


def test_an_evaluation_is_a_mean_over_its_batch(start, tmp_path):
    """And no step of training, whatever is accumulated."""
    accelerator, model, optimizer, loader, held_out = start(1, 4)
    model, _, _, held_out = accelerator.prepare(model, optimizer, loader, held_out)
    model.eval()
    for batch in held_out:
        assert "task_counts" not in batch
        with torch.no_grad():
            out = model(**batch)
        assert float(out.loss) == pytest.approx(sum(map(float, out.tpo.losses.values())), rel=1e-6)


def test_a_call_without_the_optimizer_is_refused(start):
    accelerator, model, optimizer, loader, _ = start(4)
    with pytest.raises(tpo.TPOError, match="its model without its optimizer and its loaders, in one call, so TPO"):
        accelerator.prepare(model, loader)
    with pytest.raises(tpo.TPOError, match=r"add to it:\n    from tpo_plugin import apply_tpo"):
        accelerator.prepare(model, optimizer)


def test_two_models_are_refused(start):
    accelerator, model, optimizer, loader, held_out = start(4)
    with pytest.raises(tpo.TPOError, match="for 2 language models at once"):
        accelerator.prepare(model, type(model)(model.config), optimizer, loader)
    teacher = type(model)(model.config).requires_grad_(False)
    prepared, *_ = accelerator.prepare(model, teacher, optimizer, loader, held_out)
    assert hasattr(prepared, "tpo")
    assert not hasattr(teacher, "tpo")


@pytest.mark.parametrize(("factor", "found"), [(0.5, "0.5"), (0.0, "0")])
def test_a_loss_that_is_not_the_models_is_refused(start, factor, found):
    accelerator, model, optimizer, loader, _ = start(4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    model.train()
    for batch in loader:
        out = model(**batch)
        own = out.logits.square().mean()  # beside the model's loss it may stand
        accelerator.backward(out.loss + own)
        with pytest.raises(tpo.TPOError, match=f"trains on {found} times the loss that the model returns"):
            accelerator.backward(model(**batch).loss * factor + own)


def test_training_in_evaluation_mode_is_refused(start):
    accelerator, model, optimizer, loader, _ = start(4)
    model, _, loader = accelerator.prepare(model, optimizer, loader)
    with pytest.raises(tpo.TPOError, match=r"in evaluation mode, .* call model.train\(\) before"):
        accelerator.backward(model.eval()(**next(iter(loader))).loss)


def test_rows_without_tasks_are_an_error(start):
    accelerator, model, optimizer, loader, _ = start(1, rows=[{"text": "it stands here"}])
    model, _, loader = accelerator.prepare(model, optimizer, loader)
    model.train()
    with pytest.raises(tpo.TPOError, match="none of the 1 rows that the trainer got has tasks; give them in the rows"):
        next(iter(loader))


def test_a_model_that_is_no_language_model_is_let_alone(start):
    accelerator, *_ = start(4)
    layer = torch.nn.Linear(2, 2)
    prepared, _ = accelerator.prepare(layer, torch.optim.SGD(layer.parameters(), lr=1))
    assert not hasattr(prepared, "tpo")


SCRIPTS = Path(__file__).parents[1] / "trainers" / "scripts"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "script"), [("accelerate", "accelerate_loop.py"), ("lightning", "lightning_module.py")]
)
def test_a_script_in_a_process_of_its_own(tmp_path, package, script):
    pytest.importorskip(package)
    pytest.importorskip("datasets")
    model, tokenizer = tiny_host()
    model.save_pretrained(tmp_path / "host")
    tokenizer.save_pretrained(tmp_path / "host")
    (tmp_path / "rows.json").write_text("".join(json.dumps({"tasks": [], **row}) + "\n" for row in ROWS))
    start = [sys.executable, "-c", "from tpo_plugin.cli import main; main()", "run", "--heads", "region", "--"]
    given = [tmp_path / "host", tmp_path / "rows.json", tmp_path / "out", 2, 2]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path)}
    result = subprocess.run(
        [*start, sys.executable, str(SCRIPTS / script), *map(str, given)],
        capture_output=True, text=True, env=variables, timeout=500, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "out" / "tpo_model.safetensors").is_file()
