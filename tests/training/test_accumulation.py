"""The same global batches give the same training, however they are cut into micro-batches and ranks."""

import os
import tempfile
from functools import cache

import pytest
import tiny_run
import torch
import transformers
from ranks import forked_on_two_ranks, on_two_ranks
from tiny_run import Run

from tpo_plugin.training import checkpoints
from tpo_plugin.training.trainer import SEES_WHOLE_STEP


@cache
def reference(host="honours", num_samples=24):
    """One process, one micro-batch a step."""
    torch.set_num_threads(1)
    return tiny_run.train(Run(host, num_samples=num_samples), tempfile.mkdtemp())


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
    tiny_run.assert_same(tiny_run.train(Run(host, micro, accumulation), tmp_path), reference())


@pytest.mark.skipif(not SEES_WHOLE_STEP, reason="transformers 4.45 lets a step reach over the end of an epoch")
@pytest.mark.parametrize("host", ["honours", "mean"])
def test_epoch_that_ends_in_a_shorter_step(host, tmp_path):
    tiny_run.assert_same(tiny_run.train(Run(host, 1, 8, num_samples=20), tmp_path), reference(num_samples=20))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "micro", "accumulation", "average"),
    [("honours", 2, 2, True), ("mean", 1, 4, True), ("honours", 4, 1, False)],
)
def test_two_ranks(host, micro, accumulation, average, tmp_path):
    if not SEES_WHOLE_STEP and not average:
        pytest.skip("transformers 4.45 has no average_tokens_across_devices")

    def train():
        result = tiny_run.train(Run(host, micro, accumulation, average), tmp_path)
        if os.environ["RANK"] == "0":
            torch.save(result, tmp_path / "result.pt")

    forked_on_two_ranks(train, tmp_path)
    tiny_run.assert_same(torch.load(tmp_path / "result.pt", weights_only=True), reference())


def test_two_ranks_train_together_after_an_evaluation(tmp_path):
    def train():
        result = tiny_run.train(Run(micro=2, accumulation=2, evaluates_first=True), tmp_path)
        if os.environ["RANK"] == "0":
            torch.save(result, tmp_path / "result.pt")

    forked_on_two_ranks(train, tmp_path)
    tiny_run.assert_same(torch.load(tmp_path / "result.pt", weights_only=True), reference())


def test_steps_across_epochs_on_old_transformers(tmp_path):
    if SEES_WHOLE_STEP:
        pytest.skip("only transformers 4.45 lets a step reach over the end of an epoch")
    # 20 samples: a step of 8 takes 4 of the first epoch and 4 of the second, cut as 4 x 2 or as 2 x 4.
    two = tiny_run.train(Run("honours", 4, 2, num_samples=20), tmp_path)
    tiny_run.assert_same(tiny_run.train(Run("honours", 2, 4, num_samples=20), tmp_path), two)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.slow
def test_a_run_of_stages_on_two_ranks(tmp_path):
    from tpo_plugin.training.run import read_run
    from tpo_plugin.training.run import train as train_run

    tiny_run.install_head()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        tiny_run.write_world(tmp_path / name, lora={"r": 2, "alpha": 4})
    train_run(tmp_path / "one" / "config.yaml")
    on_two_ranks(tiny_run.__file__, "run", tmp_path / "two" / "config.yaml")
    one, two = (read_run(tmp_path / name / "run")["stages"] for name in ("one", "two"))
    for stage in one:
        losses = [[entry["loss"] for entry in run[stage]["log"] if "loss" in entry] for run in (one, two)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-3), stage
    assert checkpoints.num_ranks(checkpoints.last_checkpoint(tmp_path / "two" / "run" / "stage2")) == 2
