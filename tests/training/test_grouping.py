"""Record datasets in trainers that ask them for lengths, or for a type of their own."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import tiny_run
import torch
import transformers

from tpo_plugin import TPOError, wrap_trainer
from tpo_plugin.data import RecordDataset, Records, TPOCollator

TEMPLATE = tiny_run.CHAT_TEMPLATE
BY_LENGTH = tiny_run.BY_LENGTH


def record(words: int, media: bool = False) -> dict[str, Any]:
    turns = [{"from": "human", "value": "where " * words}, {"from": "gpt", "value": "it stands here <point>"}]
    return {"conversations": turns, "tasks": [{"head": "point", "points_xy": [0.25, 0.5]}]}


@pytest.fixture
def model() -> Any:
    model, tokenizer = tiny_run.host_with_tpo()
    tokenizer.chat_template = TEMPLATE
    return model


@pytest.fixture
def dataset(model: Any) -> RecordDataset:
    return RecordDataset([Records([record(1 + (7 * i) % 16) for i in range(64)], model.tpo)])


def trainer_on(model: Any, dataset: Any, tmp_path: Any, **changes: Any) -> Any:
    args = tiny_run.arguments(tmp_path, **{"per_device_train_batch_size": 4, "max_steps": 2} | changes)
    return wrap_trainer(transformers.Trainer)(
        model=model, args=args, train_dataset=dataset, eval_dataset=dataset, data_collator=TPOCollator(model.tpo)
    )


def test_batches_of_like_lengths(model, dataset, tmp_path):
    trainer = trainer_on(model, dataset, tmp_path, **BY_LENGTH)
    rows = [batch["attention_mask"].sum(1).tolist() for batch in trainer.get_train_dataloader()]
    assert sorted(n for row in rows for n in row) == sorted(n for n in range(10, 26) for _ in range(4))
    spreads = [max(row) - min(row) for row in rows]
    assert sum(spreads) / len(spreads) <= 6  # of 15; without grouping 9
    trainer.train()
    assert "eval_loss_point" in trainer.evaluate()


def test_lengths_follow_the_mix_of_the_epoch(model):
    sources = [Records([record(w) for w in (1, 2, 3)], model.tpo), Records([record(w) for w in (8, 9)], model.tpo)]
    dataset = RecordDataset(sources, weights=[1, 1], num_samples=4)
    lengths = dataset.lengths
    for epoch in range(3):
        dataset.set_epoch(epoch)
        sizes = [sum(len(turn.text) for turn in dataset[i].record.turns) for i in range(4)]
        assert list(lengths) == sizes
    with pytest.raises(IndexError):
        lengths[4]


def test_media_stand_together(model):
    texts = Records([record(w) for w in (1, 30)], model.tpo)
    pictures = [
        {"image": "a.png", "conversations": [{"from": "human", "value": "<image>a"}, {"from": "gpt", "value": "b"}]}
    ]
    dataset = RecordDataset([texts, Records(pictures, model.tpo)])
    short, long, picture = dataset.lengths
    assert short < long < picture


class Unknown(torch.utils.data.Dataset):
    """A dataset of samples whose length nobody states."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


def test_a_dataset_without_lengths_is_refused_by_name(model, dataset, tmp_path):
    with pytest.raises(TPOError, match="group_by_length needs the length of every sample.*Unknown are Sample without"):
        trainer_on(model, Unknown(dataset), tmp_path, **BY_LENGTH).train()


@pytest.mark.skipif("group_by_length" in BY_LENGTH, reason="transformers 5 balances")
def test_balancing_by_tokens_is_refused_by_name(model, dataset, tmp_path):
    with pytest.raises(TPOError, match="batch_rebalance counts tokens, which RecordDataset does not have"):
        trainer_on(model, dataset, tmp_path, train_sampling_strategy="batch_rebalance").train()


def test_sft_trainer_takes_records(dataset, tmp_path):
    trl, results = pytest.importorskip("trl"), []
    for base in (transformers.Trainer, trl.SFTTrainer):
        model, tokenizer = tiny_run.host_with_tpo()
        tokenizer.chat_template = TEMPLATE
        args = tiny_run.arguments(tmp_path, per_device_train_batch_size=4, max_steps=2)
        if base is trl.SFTTrainer:
            known = {f.name for f in dataclasses.fields(trl.SFTConfig) if f.init}
            values = {k: v for k, v in args.to_dict().items() if k in known and not k.endswith("_token")}
            args = trl.SFTConfig(**values | {"gradient_checkpointing": False, "bf16": False})
        trainer = wrap_trainer(base)(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=dataset,
            eval_dataset={"held_out": dataset},
            data_collator=TPOCollator(model.tpo),
        )
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert trainer.train_dataset is dataset
        losses = [entry[key] for entry in logs for key in ("loss", "loss_mllm", "loss_assign", "loss_point")]
        results.append([*losses, trainer.evaluate(dataset)["eval_loss_point"]])
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    assert min(results[1]) > 0
