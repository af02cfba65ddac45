"""Heads with several tokens for a task: one prediction with all values, and losses that are divided by tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from registered import registered
from torch import Tensor

import tpo_plugin as tpo
from tpo_plugin.generation.answers import Found, joined
from tpo_plugin.testing import tiny_host
from tpo_plugin.testing.tiny import tiny_batch


class CornersHead(tpo.TaskHead):
    """A polygon: one token for each corner, the loss a mean over polygons."""

    joins = True

    def __init__(self, config: tpo.HeadConfig, hidden_size: int) -> None:
        super().__init__()
        self.proj = tpo.Linear(hidden_size, 2)

    def forward(self, e_ND: Tensor) -> dict[str, Tensor]:
        return {"corners_xy": self.proj(e_ND)}

    def num_targets(self, targets: dict[str, Any] | None) -> int:
        return len(targets["lengths"]) if targets else 0

    def count_targets(self, targets: dict[str, Any] | None) -> int:
        return sum(targets["lengths"]) if targets else 0

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Any], num_targets: Tensor | int) -> dict[str, Tensor]:
        parts = (outputs["corners_xy"] - targets["corners_xy"]).pow(2).mean(-1).split(targets["lengths"])
        return {"loss_corners": sum(part.mean() for part in parts) / num_targets}

    def to_units(self, value: Any, *, width: int | None, height: int | None, duration: float | None) -> Any:
        return value * torch.tensor([width, height])


@pytest.fixture
def corners() -> Iterator[str]:
    with registered("corners", CornersHead) as name:
        yield name


def test_tokens_that_follow_each_other_are_one_prediction(corners: str) -> None:
    """The answer is forced: three triggers with their task tokens, a word, one more."""
    model, tokenizer = tiny_host()
    tpo.apply_tpo(model, tokenizer, heads=[corners])
    trigger, task = model.tpo.token_ids[corners]
    plan = [trigger, task] * 3 + [11] + [trigger, task, 2]
    prompt = torch.tensor([[4, 5, 6]])

    def follow(input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -50.0)
        forced[:, plan[input_ids.shape[1] - 3]] = 0.0
        return forced

    out = model.tpo.generate(prompt, max_new_tokens=len(plan), do_sample=False, logits_processor=[follow])
    assert out.sequences[0, 3:].tolist() == plan
    polygon, single = out.predictions[0]
    assert polygon.value.shape == (3, 2)
    assert single.value.shape == (1, 2)
    assert (polygon.position, single.position) == (4, 11)
    assert (polygon.text_span, single.text_span) == ((3, 3), (9, 10))
    with torch.no_grad():
        truth = model(input_ids=out.sequences).tpo.predictions[corners]
    torch.testing.assert_close(torch.cat([polygon.value, single.value]), truth, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(polygon.to_units(width=10, height=20), polygon.value * torch.tensor([10, 20]))
    assert polygon.to_json()["value"] == polygon.value.tolist()


def test_only_what_stands_directly_behind_is_joined(corners: str) -> None:
    heads = {"one": tpo.TaskHead, "many": CornersHead}
    found = [
        Found(0, 3, "many", 4),
        Found(0, 5, "many", 6),
        Found(0, 8, "many", 9),
        Found(0, 10, "one", 11),
        Found(0, 12, "one", 13),
        Found(0, 14, "many", -1),
        Found(1, 3, "many", 4),
    ]
    assert [len(group) for group in joined(found, heads)] == [2, 1, 1, 1, 1, 1]


def test_losses_are_divided_by_tasks_whatever_the_accumulation(corners: str, tmp_path: Any) -> None:
    """Two rows, of one polygon of three corners and of two of one: whole batch, and one row after the other."""
    losses = []
    for accumulation in (1, 2):
        torch.manual_seed(0)
        model, tokenizer = tiny_host()
        tpo.apply_tpo(model, tokenizer, heads=[corners])
        pair = model.tpo.token_ids[corners]
        whole = tiny_batch(tokenizer, [pair] * 6, [])
        lengths = [[3], [1, 1, 1]]
        rows = []
        for row in range(2):
            target = {"corners_xy": torch.ones(3, 2) * (1 + row), "lengths": lengths[row]}
            rows.append({k: v[row : row + 1] for k, v in whole.items()} | {"task_targets": {corners: target}})

        def collate(samples: list[Any]) -> dict[str, Any]:
            batch = {k: torch.cat([s[k] for s in samples]) for k in ("input_ids", "attention_mask", "labels")}
            given = [s["task_targets"]["corners"] for s in samples]
            target = {
                "corners_xy": torch.cat([g["corners_xy"] for g in given]),
                "lengths": [n for g in given for n in g["lengths"]],
            }
            return batch | {"task_targets": {"corners": target}}

        arguments = transformers.TrainingArguments(
            str(tmp_path / str(accumulation)),
            max_steps=1,
            per_device_train_batch_size=2 // accumulation,
            gradient_accumulation_steps=accumulation,
            logging_steps=1,
            remove_unused_columns=False,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = tpo.wrap_trainer(transformers.Trainer)(
            model=model, args=arguments, train_dataset=rows, data_collator=collate
        )
        with torch.no_grad():
            expected = model(**collate(rows)).tpo.losses[corners].item()
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss_corners"])
        assert losses[-1] == pytest.approx(expected, rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
