"""What the clocks of a stage say, by a clock that only this file moves."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpo_plugin.training.throughput import Clocks

HOST_S, HEAD_S, HEAD_BACK_S, HOST_BACK_S, OPTIMIZER_S, DATA_S = 1.0, 2.0, 3.0, 4.0, 2.0, 3.0
STEP_S = HOST_S + HEAD_S + HEAD_BACK_S + HOST_BACK_S + OPTIMIZER_S
BATCH = {
    "input_ids": torch.ones(2, 4, dtype=torch.long),
    "attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]),
}


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Back(torch.autograd.Function):
    """The same value, whose way back takes some seconds."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, time: Time, seconds: float) -> Tensor:
        ctx.time, ctx.seconds = time, seconds
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.time.now += ctx.seconds
        return gradient, None, None


class Head(nn.Module):
    def __init__(self, time: Time) -> None:
        super().__init__()
        self.layer, self.time = nn.Linear(3, 1), time

    def forward(self, rows: Tensor) -> Tensor:
        self.time.now += HEAD_S
        return Back.apply(self.layer(rows), self.time, HEAD_BACK_S)


class Trainer:
    """What of a trainer the clocks look at; `rows` of other ranks are gathered beside its own."""

    def __init__(self, others: Tensor | None = None, logging_steps: int = 2, max_steps: int = 4) -> None:
        self.time = Time()
        self.state = SimpleNamespace(global_step=0, logging_steps=logging_steps, max_steps=max_steps)
        self.args = SimpleNamespace(device="cpu", dataloader_num_workers=0)
        self.tpo = SimpleNamespace(heads=nn.ModuleDict({"point": Head(self.time)}))
        self.accelerator = SimpleNamespace(gather=lambda v: v if others is None else torch.cat([v, others.to(v)]))
        self.clocks = Clocks(self, self.time)

    def step(self, *, micro_batches: int = 1, data_s: float = DATA_S, trains_host: bool = True) -> None:
        """One step, behind which the loader is waited for."""
        for number in range(micro_batches):
            self.clocks.begin(BATCH)
            self.clocks.forward()
            self.time.now += HOST_S
            hidden = Back.apply(torch.ones(2, 3, requires_grad=trains_host), self.time, HOST_BACK_S)
            self.tpo.heads["point"](hidden).sum().backward()
            if number < micro_batches - 1:
                self.clocks.on_substep_end(None, None, None)
        self.time.now += OPTIMIZER_S
        self.state.global_step += 1
        self.clocks.on_step_end(None, None, None)
        self.time.now += data_s


def test_what_a_step_takes() -> None:
    trainer = Trainer()
    with trainer.clocks.watching():
        for _ in range(2):
            trainer.step()
        found = trainer.clocks.recent()
    total = 2 * STEP_S + DATA_S  # before the first step nothing was waited for, and behind the last it goes on
    assert found.samples_per_s == pytest.approx(4 / total)
    assert found.tokens_per_s == pytest.approx(14 / total)
    assert found.data_share == pytest.approx(DATA_S / total)
    # the second step alone was measured
    assert found.heads_share == pytest.approx((1 - DATA_S / total) * (HEAD_S + HEAD_BACK_S) / STEP_S)
    assert found.host_share == pytest.approx(1 - found.data_share - found.heads_share)
    assert found.peak_memory_gb is not None
    assert 0.1 < found.peak_memory_gb < 100
    assert not trainer.tpo.heads["point"]._forward_pre_hooks


def test_logging_saving_and_evaluating_is_not_waiting_for_data() -> None:
    trainer = Trainer()
    with trainer.clocks.watching():
        trainer.step(data_s=0)
        trainer.time.now += 100
        trainer.clocks.on_save(None, None, None)
        trainer.time.now += 50
        trainer.clocks.on_evaluate(None, None, None)
        trainer.time.now += DATA_S
        trainer.step()
    assert trainer.clocks.recent().data_share == pytest.approx(DATA_S / (2 * STEP_S + DATA_S))


def test_micro_batches_add_up() -> None:
    trainer = Trainer(logging_steps=1)
    with trainer.clocks.watching():
        trainer.step(micro_batches=2)
        found = trainer.clocks.recent()
    total = 2 * (STEP_S - OPTIMIZER_S) + OPTIMIZER_S
    assert found.samples_per_s == pytest.approx(4 / total)
    assert found.heads_share == pytest.approx(2 * (HEAD_S + HEAD_BACK_S) / total)


def test_heads_on_a_host_that_has_no_way_back_take_the_rest_of_the_step() -> None:
    trainer = Trainer(logging_steps=1)
    with trainer.clocks.watching():
        trainer.step(trains_host=False)
    found = trainer.clocks.recent()
    total = STEP_S - HOST_BACK_S
    assert found.heads_share == pytest.approx((total - HOST_S) / total)


def test_the_last_step_is_measured_where_none_was_logged() -> None:
    trainer = Trainer(logging_steps=100, max_steps=3)
    with trainer.clocks.watching():
        for _ in range(3):
            trainer.step(data_s=0)
    assert trainer.clocks.stage().heads_share == pytest.approx((HEAD_S + HEAD_BACK_S) / STEP_S)


def test_the_stage_is_all_that_was_read_before_and_since() -> None:
    trainer = Trainer()
    assert trainer.clocks.stage() is None
    with trainer.clocks.watching():
        trainer.step()
        trainer.clocks.recent()
        trainer.step()
    found = trainer.clocks.stage()
    assert found.samples_per_s == pytest.approx(4 / (2 * STEP_S + DATA_S))


def test_ranks_add_their_samples_in_the_same_time() -> None:
    # samples, tokens, seconds for data, of steps, of measured steps, in heads; bytes
    other = torch.tensor([[6.0, 30.0, 7.0, STEP_S - 7.0, 10.0, 0.0, 9e12]], dtype=torch.float64)
    trainer = Trainer(other, logging_steps=1)
    with trainer.clocks.watching():
        trainer.step()
    found = trainer.clocks.recent()
    assert found.samples_per_s == pytest.approx((2 + 6) / STEP_S)
    assert found.tokens_per_s == pytest.approx((7 + 30) / STEP_S)
    assert found.data_share == pytest.approx(7 / (2 * STEP_S))
    heads = (HEAD_S + HEAD_BACK_S) / (STEP_S + 10)
    assert found.heads_share == pytest.approx((1 - found.data_share) * heads)
    assert found.peak_memory_gb == 9000


@pytest.mark.parametrize(("data_s", "warnings"), [(STEP_S, 1), (STEP_S / 4, 0)])
def test_a_loader_that_holds_the_training_up_is_said_once(
    data_s: float, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(logging_steps=10, max_steps=60)
    with trainer.clocks.watching(), caplog.at_level(logging.WARNING):
        for number in range(60):
            trainer.step(data_s=data_s)
            if number % 10 == 9:
                trainer.clocks.warn_of_the_loader("stage2", trainer.clocks.recent())
                assert not caplog.messages or number > 10, "the first steps may be slow for other reasons"
    assert len(caplog.messages) == warnings
    if warnings:
        assert "stage2: 50 % of the time goes to waiting for data" in caplog.messages[0]
        assert "data.num_workers, now 0" in caplog.messages[0]
