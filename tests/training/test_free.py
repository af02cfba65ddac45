"""Free generations in an evaluation: what they count, that a training does not feel them, and the file they leave."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny_run
import torch
import transformers

from tpo_plugin import TPOError, wrap_trainer
from tpo_plugin.data import RecordDataset, Records, TPOCollator
from tpo_plugin.training import free
from tpo_plugin.training.run import train

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]


def answer(wants: list[str], called: list[str], step: int = 1, evaluation: str = "eval") -> free.FreeAnswer:
    missing = {name: free.Trigger(0.98, 0.01, "it is") for name in wants if name not in called}
    return free.FreeAnswer(evaluation, step, "a.jsonl:1", "where?", "in Africa", wants, called, missing)


def test_rates_by_hand() -> None:
    answers = [answer(["a"], ["a"]), answer(["a"], []), answer(["a"], ["b"]), answer([], ["b"]), answer([], [])]
    assert free.rates(answers, ["a", "b", "c"]) == {
        "free_questions": 5,
        "free_false_triggers": 0.5,
        "free_a_emission": pytest.approx(1 / 3),
        "free_a_false_triggers": 0.0,
        "free_b_false_triggers": pytest.approx(2 / 5),
        "free_c_false_triggers": 0.0,
    }


def test_where_the_two_part() -> None:
    def sentences(accuracy: float, emission: float) -> list[str]:
        return free.parted({"assign_accuracy": accuracy, "free_a_emission": emission}, ["a", "b"])

    assert sentences(1.0, 0.5) == sentences(0.89, 0.0) == free.parted({"free_a_emission": 0.0}, ["a"]) == []
    (sentence,) = sentences(1.0, 0.1)
    assert "right in 100% (assign_accuracy)" in sentence
    assert "comes in 10% (free_a_emission)" in sentence


def test_a_run_that_goes_on_replaces_what_it_asks_again(tmp_path: Path) -> None:
    path = tmp_path / free.FILE
    for step in (1, 2, 3):
        free.write(path, [answer(["a"], [], step), answer([], [], step)], "eval", step)
    free.write(path, [answer([], [], 2, "test")], "test", 2)
    free.write(path, [answer(["a"], ["a"], 2)], "eval", 2)
    assert [(a.evaluation, a.step, a.called) for a in free.read(path)] == [
        ("eval", 1, []), ("eval", 1, []), ("test", 2, []), ("eval", 2, ["a"])
    ]  # fmt: skip
    assert free.read(path)[0] == answer(["a"], [], 1)
    path.write_text("no JSON\n")
    with pytest.raises(TPOError, match="holds no free answers"):
        free.read(path)


# -- in a trainer ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("free")
    tiny_run.write_world(folder)
    lines = [(folder / f"{name}.jsonl").read_text() for name in ("tasks", "chats")]
    (folder / "all.jsonl").write_text("".join(lines))
    return folder / "all.jsonl"


def trainer_of(records: Path, folder: Path, number: int, **changes: Any) -> Any:
    model, tokenizer = tiny_run.host_with_tpo()
    tokenizer.chat_template = tiny_run.CHAT_TEMPLATE
    data = RecordDataset([Records(records, model.tpo)])
    args = tiny_run.arguments(folder, **changes)
    kind = wrap_trainer(transformers.Trainer, eval_generations=number)
    return kind(model=model, args=args, train_dataset=data, eval_dataset=data, data_collator=TPOCollator(model.tpo))


def favour(model: Any, bias: float) -> None:
    """Makes the trigger likelier everywhere, or never likely; also with trained rows."""
    trigger, _ = model.tpo.token_ids["point"]

    def add(module: Any, args: Any, logits: torch.Tensor) -> None:
        logits[..., trigger] += bias

    model.tpo.host.head.register_forward_hook(add)


def test_a_trigger_that_always_or_never_comes(records: Path, tmp_path: Path) -> None:
    for bias, called in ((100.0, 1.0), (-100.0, 0.0)):
        trainer = trainer_of(records, tmp_path / str(called), 16)
        favour(trainer.model, bias)
        found = trainer.evaluate()
        assert found["eval_free_questions"] == 16
        assert found["eval_free_point_emission"] == found["eval_free_false_triggers"] == called
        assert found["eval_free_point_false_triggers"] == called
        assert ("eval_free_point_loss_l2" in found) == bool(called)
        assert trainer.state.log_history[-1]["eval_free_point_emission"] == called
        answers = free.read(tmp_path / str(called) / free.FILE)
        wanted = [a for a in answers if a.wants]
        assert 3 <= len(wanted) <= 13  # of both kinds, whatever the order of the data
        assert all(bool(a.triggers) == (bool(a.wants) and not called) for a in answers)


def test_the_probability_behind_the_records_words_and_in_the_answer(records: Path, tmp_path: Path) -> None:
    trainer = trainer_of(records, tmp_path, 8)
    favour(trainer.model, -3.0)
    trainer.evaluate()
    model, tpo = trainer.model, trainer.tpo
    trigger, _ = tpo.token_ids["point"]
    data = {r.place: r for r in Records(records, tpo)}
    samples = {sample.record.place: sample for sample in trainer.eval_dataset}
    missed = [a for a in free.read(tmp_path / free.FILE) if a.triggers]
    assert missed
    for a in missed:
        batch = TPOCollator(tpo)([samples[a.record]])
        with torch.no_grad():
            logits = model(**batch).logits[0, :-1].float().log_softmax(-1)[:, trigger]
        mean = logits[batch["labels"][0, 1:] == trigger].mean().exp()
        assert a.triggers["point"].in_record == pytest.approx(float(mean), rel=1e-4)
        batch = TPOCollator(tpo, for_generation=True)([samples[a.record]])
        room = 16 + 2 * len(tpo.tokenizer.encode(data[a.record].turns[-1].text, add_special_tokens=False))
        made = model.generate(
            **{k: batch[k] for k in ("input_ids", "attention_mask")}, do_sample=False, max_new_tokens=room,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        steps = torch.stack([step[0].softmax(-1)[trigger] for step in made.logits])
        assert a.triggers["point"].in_answer == pytest.approx(float(steps.max()), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}])
def test_a_training_does_not_feel_it(records: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    weights, logs = [], []
    for number in (0, 2):
        trainer = trainer_of(
            records, tmp_path / str(number), number, max_steps=3, per_device_train_batch_size=4,
            eval_strategy="steps", eval_steps=1,
            **changes,
        )  # fmt: skip
        for module in trainer.model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.3
        trainer.train()
        weights.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert any("eval_free_questions" in entry for entry in trainer.state.log_history) == bool(number)
    assert logs[0] == logs[1]
    assert all(torch.equal(weights[0][name], p) for name, p in weights[1].items())


def test_flags_and_random_states_stay(records: Path, tmp_path: Path) -> None:
    trainer = trainer_of(records, tmp_path, 4)
    trainer.model.train()
    trainer.model.tpo.heads.eval()
    flags = [module.training for module in trainer.model.modules()]
    state = torch.get_rng_state()
    free.ask(trainer, trainer.eval_dataset, "eval", {})
    assert [module.training for module in trainer.model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)


def test_a_warning_where_the_two_part(records: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of(records, tmp_path, 8)
    favour(trainer.model, -100.0)
    with caplog.at_level(logging.WARNING):
        free.ask(trainer, trainer.eval_dataset, "eval", {"assign_accuracy": 0.95})
    assert "eval, step 0: point: behind the records' own words the trigger is right in 95%" in caplog.text


def test_data_that_is_no_record(tmp_path: Path) -> None:
    model, tokenizer = tiny_run.host_with_tpo()
    data = tiny_run.Samples(tokenizer)
    kind = wrap_trainer(transformers.Trainer, eval_generations=2)
    trainer = kind(model=model, args=tiny_run.arguments(tmp_path), eval_dataset=data, data_collator=tiny_run.collate)
    with pytest.raises(TPOError, match="the evaluation dataset holds dict; give a tpo_plugin.data.RecordDataset"):
        trainer.evaluate()
    with pytest.raises(TPOError, match="eval_generations=-1; expected a number of at least 0"):
        wrap_trainer(transformers.Trainer, eval_generations=-1)


# -- in a run ----------------------------------------------------------------------------------------------------------


def test_a_stage_asks_and_keeps_the_answers(tmp_path: Path) -> None:
    tiny_run.install_head()
    path = tiny_run.write_world(tmp_path, stages=["stage2"])
    values = json.loads(path.read_text())
    values["stages"]["stage2"] |= {"steps": 1, "eval_generations": 3}
    path.write_text(json.dumps(values))
    run = train(path)
    stage = json.loads((run / "stage2" / "stage.json").read_text())
    assert stage["evaluation"]["eval_free_questions"] == 3
    steps = [entry["step"] for entry in stage["log"] if "eval_free_point_emission" in entry]
    answers = free.read(run / "stage2" / free.FILE)
    assert sorted({a.step for a in answers}) == sorted(set(steps))
    assert len(answers) == 3 * len(set(steps))


@pytest.mark.slow
def test_two_ranks_answer_as_one(tmp_path: Path) -> None:
    tiny_run.install_head()
    found = []
    for folder, several in ((tmp_path / "one", False), (tmp_path / "two", True)):
        folder.mkdir()
        path = tiny_run.write_world(folder, stages=["stage2"])
        values = json.loads(path.read_text())
        values["lora"]["dropout"] = 0.0
        values["stages"]["stage2"] |= {"steps": 2, "eval_steps": 1, "epochs": 1.0, "eval_generations": 5}
        path.write_text(json.dumps(values))
        if several:
            ranks.on_two_ranks(Path(tiny_run.__file__), "run", path)
        else:
            train(path)
        stage = json.loads((folder / "run" / "stage2" / "stage.json").read_text())
        free_values = {k: v for k, v in stage["evaluation"].items() if k.startswith("eval_free")}
        found.append((free_values, free.read(folder / "run" / "stage2" / free.FILE)))
    (one, answers), (two, others) = found
    assert one.keys() == two.keys()
    assert one == pytest.approx(two, rel=1e-4)
    assert [(a.step, a.question, a.answer, a.called) for a in answers] == [
        (a.step, a.question, a.answer, a.called) for a in others
    ]
