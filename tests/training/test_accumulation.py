"""The same global batches give the same training, however they are cut into micro-batches and ranks."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
import tiny_run
import torch
import transformers
from tiny_run import Run

from tpo_plugin.training import checkpoints
from tpo_plugin.training.trainer import SEES_WHOLE_STEP

KEYS = ["loss", "loss_mllm", "loss_assign", "loss_point", "assign_accuracy", "false_trigger_rate", "grad_norm"]


@cache
def reference(host="honours", num_samples=24):
    """One process, one micro-batch a step."""
    torch.set_num_threads(1)
    return tiny_run.train(Run(host, num_samples=num_samples), tempfile.mkdtemp())


def assert_same(result, expected):
    assert len(result["logs"]) == len(expected["logs"]) == 10
    for entry, wanted in zip(result["logs"], expected["logs"], strict=True):
        for key in KEYS:
            assert entry[key] == pytest.approx(wanted[key], rel=1e-5, abs=1e-9), (key, entry["step"])
    for key, value in expected["evaluation"].items():
        if key.startswith(("eval_loss_", "eval_point", "eval_assign", "eval_false")):
            assert result["evaluation"][key] == pytest.approx(value, rel=1e-5), key
    for name, parameter in expected["parameters"].items():
        assert (result["parameters"][name] - parameter).abs().max() <= 1e-6, name


def on_two_ranks(arguments):
    """Runs the script `tiny_run` with these arguments on two ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    common = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(root),
    }  # fmt: skip
    command = [sys.executable, tiny_run.__file__, *arguments]
    ranks = [
        subprocess.Popen(
            command, env=common | {"RANK": str(r), "LOCAL_RANK": str(r)}, stderr=subprocess.PIPE, text=True
        )
        for r in range(2)
    ]
    errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors


def test_it_trains(tmp_path):
    logs = reference()["logs"]
    assert logs[-1]["loss"] < 0.8 * logs[0]["loss"]
    assert logs[-1]["loss_point"] < logs[0]["loss_point"]
    for entry in logs:
        assert entry["loss"] == pytest.approx(entry["loss_mllm"] + entry["loss_assign"] + entry["loss_point"], rel=1e-5)


def test_first_step_is_the_loss_of_the_whole_batch(tmp_path):
    """What is logged is the documented formula, computed here by hand on one batch of eight."""
    model, tokenizer = tiny_run.host_with_tpo()
    args = tiny_run.arguments(tmp_path, max_steps=1, learning_rate=0.0)
    samples = tiny_run.Samples(tokenizer, 8)
    trainer = tiny_run.wrap_trainer(transformers.Trainer)(
        model=model, args=args, train_dataset=samples, data_collator=tiny_run.collate
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    batch = tiny_run.collate(list(samples))
    with torch.no_grad():
        out = model(**{k: v for k, v in batch.items() if k not in ("labels", "task_targets")})
    targets, logits = batch["labels"][:, 1:], out.logits[:, :-1].float()
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100
    )
    trigger = (targets == model.tpo.token_ids["point"][0]).flatten()
    ordinary = (targets.flatten() != -100) & ~trigger
    assert logged["loss_mllm"] == pytest.approx(loss[ordinary].mean().item(), rel=1e-5)
    assert logged["loss_assign"] == pytest.approx(loss[trigger].mean().item(), rel=1e-5)


@pytest.mark.parametrize("host", ["honours", "mean"])
@pytest.mark.parametrize(("micro", "accumulation"), [(2, 4), (1, 8)])
def test_accumulation(host, micro, accumulation, tmp_path):
    assert_same(tiny_run.train(Run(host, micro, accumulation), tmp_path), reference())


@pytest.mark.skipif(not SEES_WHOLE_STEP, reason="transformers 4.45 lets a step reach over the end of an epoch")
@pytest.mark.parametrize("host", ["honours", "mean"])
def test_epoch_that_ends_in_a_shorter_step(host, tmp_path):
    assert_same(tiny_run.train(Run(host, 1, 8, num_samples=20), tmp_path), reference(num_samples=20))


@pytest.mark.parametrize(
    ("host", "micro", "accumulation", "average"),
    [("honours", 2, 2, True), ("mean", 1, 4, True), ("honours", 4, 1, False)],
)
def test_two_ranks(host, micro, accumulation, average, tmp_path):
    if not SEES_WHOLE_STEP and not average:
        pytest.skip("transformers 4.45 has no average_tokens_across_devices")
    on_two_ranks([json.dumps(vars(Run(host, micro, accumulation, average))), str(tmp_path)])
    assert_same(torch.load(tmp_path / "result.pt", weights_only=True), reference())


def test_steps_across_epochs_on_old_transformers(tmp_path):
    if SEES_WHOLE_STEP:
        pytest.skip("only transformers 4.45 lets a step reach over the end of an epoch")
    # 20 samples: a step of 8 takes 4 of the first epoch and 4 of the second, cut as 4 x 2 or as 2 x 4.
    two = tiny_run.train(Run("honours", 4, 2, num_samples=20), tmp_path)
    assert_same(tiny_run.train(Run("honours", 2, 4, num_samples=20), tmp_path), two)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:mtime may not be reliable")
def test_a_run_of_stages_on_two_ranks(tmp_path):
    from tpo_plugin.training.run import read_run
    from tpo_plugin.training.run import train as train_run

    tiny_run.install_head()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        tiny_run.write_world(tmp_path / name, lora={"r": 2, "alpha": 4})
    train_run(tmp_path / "one" / "config.yaml")
    on_two_ranks(["run", str(tmp_path / "two" / "config.yaml")])
    one, two = (read_run(tmp_path / name / "run")["stages"] for name in ("one", "two"))
    for stage in one:
        losses = [[entry["loss"] for entry in run[stage]["log"] if "loss" in entry] for run in (one, two)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-3), stage
    assert checkpoints.last_checkpoint(tmp_path / "two" / "run" / "stage2", 2) is not None
    assert checkpoints.last_checkpoint(tmp_path / "two" / "run" / "stage2", 4) is None, (
        "ranks' random states are missing"
    )
