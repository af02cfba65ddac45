"""A loss or a gradient that is NaN or infinite: named, with its records, and never stepped on."""

import importlib.util
import json
import logging
import math
import re
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_run
import torch
import transformers
from ranks import TRIES_FSDP, on_two_ranks

from tpo_plugin import TPOError, losses, wrap_trainer
from tpo_plugin.training.trainer import SEES_WHOLE_STEP

spec = importlib.util.spec_from_file_location("nonfinite_run", Path(__file__).with_name("nonfinite_run.py"))
nonfinite_run = importlib.util.module_from_spec(spec)
sys.modules["nonfinite_run"] = nonfinite_run
spec.loader.exec_module(nonfinite_run)
trainer_of, STEP = nonfinite_run.trainer_of, nonfinite_run.STEP

FAULTS = {
    "point": nonfinite_run.loss_of_head,
    "point is infinite": partial(nonfinite_run.loss_of_head, factor=math.inf),
    "point, with a finite gradient": nonfinite_run.constant_in_a_loss,
    "host": nonfinite_run.host_output,
}
GRADIENTS = {
    "tpo.heads.point.proj.weight": "heads.point",
    "tpo.embeddings.point.task": "task_tokens.point",
    "model.layers.0.self_attn.q_proj.weight": "language",
}


def same(one, other):
    return all(torch.equal(other[name], value) for name, value in one.items())


def lines(text):
    """The records that a message names."""
    return sorted(map(int, re.findall(r"chats\.jsonl:(\d+)", text)))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_loss_is_named_and_no_step_is_taken(tmp_path, fault):
    trainer = trainer_of(tmp_path, FAULTS[fault])
    names = "'mllm', 'assign', 'point'" if fault == "host" else "'point'"
    with pytest.raises(TPOError, match=f"^step {STEP}: the loss of {names} is NaN or infinite; its records: ") as found:
        trainer.train()
    assert len(lines(str(found.value))) == 4, "of one micro-batch"
    assert "on_nonfinite 'skip'" in str(found.value)
    assert len(trainer.seen.weights) == STEP - 1
    assert same(trainer.seen.weights[-1], dict(trainer.model.named_parameters()))


def test_the_records_are_those_of_the_micro_batch(tmp_path):
    """With one sample in each, the fault is that of line 7."""

    def fault(model, now):
        head = model.tpo.heads["point"]
        own = head.loss
        wanted = tiny_run.Samples(model.tpo.tokenizer).samples[6]["points"]

        def loss(outputs, targets, num):
            terms = own(outputs, targets, num)
            hit = targets["points_xy"].tolist() == torch.tensor(wanted).tolist()
            return {name: value * math.nan for name, value in terms.items()} if hit else terms

        head.loss = loss

    trainer = trainer_of(tmp_path, fault, per_device_train_batch_size=1, gradient_accumulation_steps=24)
    with pytest.raises(
        TPOError, match=r"^step 1: the loss of 'point' is NaN or infinite; its records: chats.jsonl:7\."
    ):
        trainer.train()


def test_the_assignment_loss(tmp_path, monkeypatch):
    own = losses.assignment_loss
    trainer = trainer_of(tmp_path, lambda model, now: None)
    monkeypatch.setattr(losses, "assignment_loss", lambda *args: own(*args) * math.nan)
    with pytest.raises(TPOError, match="^step 1: the loss of 'assign' is NaN or infinite"):
        trainer.train()
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


@pytest.mark.parametrize("changes", [{}, {"max_grad_norm": 0.0}, {"bf16": True}], ids=str)
@pytest.mark.parametrize("parameter", GRADIENTS)
def test_a_gradient_is_named_by_its_part(tmp_path, parameter, changes):
    fault = partial(nonfinite_run.gradient, name=parameter)
    trainer = trainer_of(tmp_path, fault, **changes)
    with pytest.raises(
        TPOError, match=f"^step {STEP}: the gradient of '{GRADIENTS[parameter]}' is NaN or inf"
    ) as found:
        trainer.train()
    assert len(lines(str(found.value))) == 8, "of the whole step"
    assert same(trainer.seen.weights[-1], dict(trainer.model.named_parameters()))


def test_a_host_of_half_precision(tmp_path):
    """Its gradients are bfloat16, those of the heads float32."""

    def fault(model, now):
        model.model.to(torch.bfloat16)
        model.lm_head.to(torch.bfloat16)
        nonfinite_run.gradient(model, now, "model.layers.0.mlp.up_proj.weight")

    trainer = trainer_of(tmp_path, fault)
    with pytest.raises(TPOError, match=f"^step {STEP}: the gradient of 'language' is NaN or infinite"):
        trainer.train()
    weights = dict(trainer.model.named_parameters())
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16, torch.float32}
    assert same(trainer.seen.weights[-1], weights)


@pytest.mark.parametrize("fault", [*FAULTS, "tpo.heads.point.proj.weight"])
@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_a_step_that_is_left_out(tmp_path, fault, optim, caplog):
    armed = FAULTS.get(fault) or partial(nonfinite_run.gradient, name=fault)
    trainer = trainer_of(tmp_path, armed, on_nonfinite="skip", optim=optim, weight_decay=0.1)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step ")]
    assert len(said) == 1
    assert said[0].startswith(f"step {STEP}: ")
    assert said[0].endswith("The step is left out")
    weights = trainer.seen.weights
    assert len(weights) == 5
    for step in range(1, 5):
        assert same(weights[step - 1], weights[step]) == (step == STEP - 1), step
    logs = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    assert [entry.get("steps_left_out", 0) for entry in logs] == [0, 0, 1, 0, 0]
    assert ["loss" in entry for entry in logs] == [True, True, False, True, True]
    numbers = [value for entry in trainer.state.log_history for value in entry.values()]
    assert all(math.isfinite(number) for number in numbers)


def test_means_go_over_the_steps_that_were_taken(tmp_path):
    """A log line over five steps, of which one is left out, is the mean of the four."""
    logged = {}
    for every in (1, 5):
        trainer = trainer_of(tmp_path, nonfinite_run.loss_of_head, on_nonfinite="skip", logging_steps=every)
        trainer.train()
        logged[every] = trainer.state.log_history
    taken = [entry for entry in logged[1] if "loss" in entry]
    for key in ("loss", "loss_mllm", "loss_assign", "loss_point"):
        assert logged[5][0][key] == pytest.approx(sum(entry[key] for entry in taken) / 4, rel=1e-5)
    assert logged[5][0]["steps_left_out"] == 1
    assert logged[5][-1]["train_loss"] == pytest.approx(logged[5][0]["loss"], rel=1e-5)
    assert logged[1][-1]["train_loss"] == pytest.approx(logged[5][0]["loss"], rel=1e-5)


def test_what_never_trains_any_more_stops(tmp_path):
    trainer = trainer_of(
        tmp_path, nonfinite_run.loss_of_head, steps=tuple(range(3, 99)), on_nonfinite="skip", max_steps=20
    )
    with pytest.raises(TPOError, match="^step 12: .*, as in the 9 steps before it: nothing trains any more"):
        trainer.train()


def test_a_collator_that_names_no_records(tmp_path):
    trainer = trainer_of(tmp_path, nonfinite_run.loss_of_head, collate=tiny_run.collate)
    with pytest.raises(TPOError, match="its records: unknown, as its collator gives no task_records"):
        trainer.train()


def test_another_word(tmp_path):
    with pytest.raises(TPOError, match="on_nonfinite='ignore'; expected 'stop' or 'skip'"):
        wrap_trainer(transformers.Trainer, on_nonfinite="ignore")
    skip = wrap_trainer(wrap_trainer(transformers.Trainer), on_nonfinite="skip")
    assert skip.on_nonfinite == "skip"
    assert wrap_trainer(skip, on_nonfinite="skip") is skip


# -- float16, whose scaler leaves out what overflows -------------------------------------------------------------------


def scaled(trainer, scale):
    """The trainer with the scaler that float16 has on a GPU."""
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    return trainer


def test_the_scaler_and_a_loss(tmp_path):
    trainer = scaled(trainer_of(tmp_path, nonfinite_run.loss_of_head), 2.0**10)
    with pytest.raises(
        TPOError, match=f"^step {STEP}: the loss of 'point' is NaN or infinite; its records: chats.jsonl"
    ):
        trainer.train()
    assert same(trainer.seen.weights[STEP - 2], dict(trainer.model.named_parameters()))


def test_the_scaler_and_a_loss_with_a_finite_gradient_that_is_left_out(tmp_path, caplog):
    fault = nonfinite_run.constant_in_a_loss
    trainer = scaled(trainer_of(tmp_path, fault, on_nonfinite="skip"), 2.0**10)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert f"step {STEP}: the loss of 'point' is NaN or infinite" in caplog.text
    weights = trainer.seen.weights
    assert [same(weights[i], weights[i + 1]) for i in range(4)] == [False, True, False, False]


def test_an_overflow_is_the_scalers_own(tmp_path, caplog):
    fault = partial(nonfinite_run.gradient, name="tpo.heads.point.proj.weight")
    trainer = scaled(trainer_of(tmp_path, fault), 2.0**10)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "NaN or infinite" not in caplog.text
    assert trainer.accelerator.scaler.get_scale() == 2.0**9
    weights = trainer.seen.weights
    assert [same(weights[i], weights[i + 1]) for i in range(4)] == [False, True, False, False]


def test_a_gradient_that_no_scale_makes_finite(tmp_path):
    fault = partial(nonfinite_run.gradient, name="tpo.heads.point.proj.weight")
    trainer = scaled(trainer_of(tmp_path, fault, steps=(1, 2, 3, 4)), 2.0**2)
    with pytest.raises(TPOError, match="^step 2: a gradient is NaN or infinite; its records: chats.jsonl"):
        trainer.train()


# -- several ranks -----------------------------------------------------------------------------------------------------


def check_ranks(folder, faults):
    ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]
    for found in ranks:
        for name in faults:
            said, steps = found[name]["said"], found[name]["steps"]
            assert f"step {STEP}: the loss of 'point' is NaN or infinite; its records: chats.jsonl:" in said, name
            assert len(lines(said)) == 2, "those of rank 1's second micro-batch"
            assert steps in (STEP - 1, STEP)
        skip = found["skip"]
        assert skip["steps"] == 5
        assert (skip["same"], skip["moved"], skip["finite"]) == (True, True, True)
        assert [entry.get("steps_left_out", 0) for entry in skip["log"]] == [0, 0, 1, 0, 0]
    assert len(ranks[0]["skip"]["said"]) == 1
    assert ranks[1]["skip"]["said"] == [], "one rank says it"
    assert lines(ranks[0]["skip"]["said"][0]) == lines(ranks[0]["loss"]["said"])
    return ranks


@pytest.mark.slow
def test_two_ranks(tmp_path):
    write_host(tmp_path)
    on_two_ranks(nonfinite_run.__file__, "ddp", tmp_path)
    ranks = check_ranks(tmp_path, ["loss", "constant"])
    for found in ranks:
        assert f"step {STEP}: the gradient of 'heads.point' is NaN or infinite" in found["gradient"]["said"]
        assert len(lines(found["gradient"]["said"])) == 8, "of the whole step"


@pytest.mark.skipif(not TRIES_FSDP, reason="FSDP2 is tried on the newest transformers only")
@pytest.mark.slow
def test_fsdp(tmp_path):
    write_host(tmp_path)
    on_two_ranks(nonfinite_run.__file__, "fsdp", tmp_path)
    check_ranks(tmp_path, ["loss", "constant"])


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed, which .ci/run installs for this")
@pytest.mark.skipif(not SEES_WHOLE_STEP, reason="DeepSpeed is tried on the newest transformers only")
@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.slow
def test_deepspeed(stage, tmp_path):
    write_host(tmp_path)
    on_two_ranks(nonfinite_run.__file__, stage, tmp_path)
    check_ranks(tmp_path, ["loss", "constant"])


def write_host(folder):
    host, tokenizer = tiny_run.tiny_host()
    host.save_pretrained(folder / "host")
    tokenizer.save_pretrained(folder / "host")
