"""An evaluation counts every sample once, however many ranks and whatever sizes of batches."""

from __future__ import annotations

import dataclasses
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
import transformers
from ranks import forked

from tpo_plugin import wrap_trainer

ORDERS = {
    "mixed": list(range(9)),
    "tasks on one of two ranks": [1, 0, 2, 4, 3, 7, 5, 8, 6],
    "two samples": [1, 2],
}
"""Of the samples; of two ranks with batches of one, the second never has a task in the second order."""
SIZES = {"mixed": (1, 2, 4), "tasks on one of two ranks": (1,), "two samples": (2,)}


class Stream(torch.utils.data.IterableDataset):
    """Samples of unknown number."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __iter__(self) -> Any:
        yield from self.samples


WITH_INPUTS: dict[str, Any] = {"include_for_metrics": ["inputs"]}
if "include_for_metrics" not in {field.name for field in dataclasses.fields(transformers.TrainingArguments)}:  # 4.45
    WITH_INPUTS = {"include_inputs_for_metrics": True}


def evaluator(folder: Path, size: int, *, split: bool = False, **options: Any) -> tuple[Any, Any]:
    """A wrapped trainer of the tiny host, and all nine samples."""
    model, tokenizer = tiny_run.host_with_tpo()
    loading = {"split_batches": split, "dispatch_batches": False}
    args = tiny_run.arguments(folder, per_device_eval_batch_size=size, accelerator_config=loading, **options)
    trainer = wrap_trainer(transformers.Trainer)(model=model, args=args, data_collator=tiny_run.collate)
    return trainer, list(tiny_run.Samples(tokenizer, 9))


def metrics_of(trainer: Any, samples: Any) -> dict[str, float]:
    timed = ("_per_second", "_runtime", "preparation_time")
    return {name: value for name, value in trainer.evaluate(samples).items() if not name.endswith(timed)}


@cache
def expected(order: str) -> dict[str, float]:
    """One process, one batch of all samples."""
    torch.set_num_threads(1)
    trainer, samples = evaluator(Path("unused"), 9)
    found = metrics_of(trainer, [samples[i] for i in ORDERS[order]])
    assert found["eval_loss"] == pytest.approx(
        found["eval_loss_mllm"] + found["eval_loss_assign"] + found["eval_loss_point"], rel=1e-6
    )
    assert {"eval_assign_accuracy", "eval_false_trigger_rate", "eval_point_loss_l2"} <= found.keys()
    return found


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_batches_of_one_process(order: str, size: int, tmp_path: Path) -> None:
    trainer, samples = evaluator(tmp_path, size)
    assert metrics_of(trainer, [samples[i] for i in ORDERS[order]]) == pytest.approx(expected(order), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks(num_ranks: int, tmp_path: Path) -> None:
    """Every rank has the same numbers, which are those of one process; of a stream too, and of split batches."""

    def evaluate() -> None:
        found = {}
        for order, sizes in SIZES.items():
            for size in sizes:
                trainer, samples = evaluator(tmp_path, size)
                chosen = [samples[i] for i in ORDERS[order]]
                found[order, size] = metrics_of(trainer, chosen)
                found[order, size, "stream"] = metrics_of(trainer, Stream(chosen))
        split = evaluator(tmp_path, 2 * num_ranks, split=True)[0]
        found["mixed", "split"] = metrics_of(split, samples)
        torch.save(found, tmp_path / f"{os.environ['RANK']}.pt")

    forked(evaluate, tmp_path, num_ranks)
    for rank in range(num_ranks):
        for key, metrics in torch.load(tmp_path / f"{rank}.pt").items():
            assert metrics == pytest.approx(expected(key[0]), rel=1e-6), (rank, key)


@pytest.mark.parametrize(("num_ranks", "size"), [(2, 2), (2, 4), (3, 1), (3, 2)])
def test_predictions_of_ranks(num_ranks: int, size: int, tmp_path: Path) -> None:
    """Logits and labels come once, in the order of the samples, also to `compute_metrics`."""

    def predict() -> None:
        trainer, samples = evaluator(tmp_path, size, **WITH_INPUTS)
        trainer.compute_metrics = lambda given: {"rows": len(given.inputs), "sum": float(given.label_ids.sum())}
        output = trainer.predict(samples)
        torch.save([output.predictions, output.label_ids, output.metrics], tmp_path / f"{os.environ['RANK']}.pt")

    forked(predict, tmp_path, num_ranks)
    logits, labels, metrics = torch.load(tmp_path / "0.pt", weights_only=False)
    trainer, samples = evaluator(tmp_path, 9)
    wanted = trainer.predict(samples)
    assert len(logits) == len(labels) == metrics["test_rows"] == 9
    assert (labels == wanted.label_ids).all()
    for row, sample in enumerate(samples):
        real = len(sample["input_ids"])
        assert abs(logits[row, :real] - wanted.predictions[row, :real]).max() < 1e-5, row


@pytest.mark.slow
def test_a_training_that_evaluates(tmp_path: Path) -> None:
    """Two ranks evaluate after every second step what one process does, and train what it trains."""

    def train() -> dict[str, Any]:
        model, tokenizer = tiny_run.host_with_tpo()
        size = 8 // int(os.environ.get("WORLD_SIZE", "1"))
        args = tiny_run.arguments(
            tmp_path, per_device_train_batch_size=size, per_device_eval_batch_size=2, eval_strategy="steps",
            eval_steps=2, max_steps=4,
        )  # fmt: skip
        trainer = wrap_trainer(transformers.Trainer)(
            model=model, args=args, train_dataset=tiny_run.Samples(tokenizer),
            eval_dataset=tiny_run.Samples(tokenizer, 9), data_collator=tiny_run.collate,
        )  # fmt: skip
        trainer.train()
        return {"log": trainer.state.log_history, "row": model.tpo.embeddings["point"].output.detach().clone()}

    def train_and_save() -> None:
        torch.save(train(), tmp_path / f"{os.environ['RANK']}.pt")

    one = train()
    forked(train_and_save, tmp_path, 2)
    two = torch.load(tmp_path / "0.pt")
    assert (two["row"] - one["row"]).abs().max() <= 1e-6
    for found, wanted in zip(two["log"], one["log"], strict=True):
        for name in ("loss", "eval_loss", "eval_point_loss_l2", "eval_assign_accuracy"):
            assert found.get(name, 0) == pytest.approx(wanted.get(name, 0), rel=1e-5), name
