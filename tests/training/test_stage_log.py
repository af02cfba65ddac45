"""What a run prints of its training, and writes to its log."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_run
import torch
from ranks import in_a_child
from rich.console import Console

from tpo_plugin import TPOError
from tpo_plugin.training.config import TrainConfig
from tpo_plugin.training.run import read_run, train
from tpo_plugin.training.stage_log import StageLog
from tpo_plugin.training.throughput import Throughput

# PEFT 0.21 asks transformers 5.23 by an old name.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),  # the tiny host comes from nowhere
]

FOUND = Throughput(12.34, 567.8, 0.25, 0.25, 0.5, 1.5)
SHARES = ["data_share", "heads_share", "host_share"]
EVAL_TIMES = ("runtime", "per_second", "preparation_time")


def config_of(folder: Path, **changes: Any) -> TrainConfig:
    torch.set_num_threads(1)
    tiny_run.install_head()
    config = TrainConfig.from_yaml(tiny_run.write_world(folder, stages=["stage2", "stage3"]))
    for name, stage in config.stages.items():
        config.stages[name] = dataclasses.replace(stage, **changes)
    return config


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def without_times(entry: dict[str, Any]) -> dict[str, Any]:
    left_out = {*FOUND.to_json(), "stage"}
    return {k: v for k, v in entry.items() if k not in left_out and not k.endswith(EVAL_TIMES)}


def test_a_run_prints_a_table_and_writes_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(config_of(tmp_path, logging_steps=2))
    printed = capsys.readouterr().out
    assert "{" not in printed, "transformers prints no dicts"
    stages = read_run(run)["stages"]
    logged = [entry for stage in stages.values() for entry in stage["log"]]
    lines = lines_of(run)
    assert [without_times(entry) for entry in lines] == [without_times(entry) for entry in logged]
    assert [entry["stage"] for entry in lines] == [name for name, stage in stages.items() for _ in stage["log"]]
    for number, (name, stage) in enumerate(stages.items(), 1):
        assert f"stage {number} of 2 ({name}): {stage['steps']} steps\n" in printed
        found = stage["throughput"]
        assert sum(found[share] for share in SHARES) == pytest.approx(1, abs=1e-3)
        end = rf"stage {number} of 2 \({name}\): \S+ samples/s, \S+ tokens/s; of the time .*; peak memory \S+ GB\n"
        assert re.search(end, printed)
    of_steps = [entry for entry in lines if "learning_rate" in entry]
    for entry in of_steps:
        assert entry["samples_per_s"] > 0
        row = [str(entry["step"]), *(f"{entry[name]:.4g}" for name in ("loss", "loss_mllm", "loss_assign"))]
        assert row in [line.split()[:4] for line in printed.splitlines()]
    assert re.search(r"\n   step +loss +mllm +assign +point +triggers .*samples/s +left\n", printed)
    for entry in lines:
        if "eval_loss" in entry:
            said = f"evaluated after step {entry['step']}: loss {entry['eval_loss']:.4g}"
            assert said in printed


@pytest.mark.slow
def test_an_evaluation_behind_the_last_step_is_the_stage_s(tmp_path: Path) -> None:
    run = train(config_of(tmp_path))
    evaluated = [stage for stage in read_run(run)["stages"].values() if "evaluation" in stage]
    assert evaluated
    for stage in evaluated:
        steps = [entry["step"] for entry in stage["log"] if "eval_loss" in entry]
        assert steps[-1] == stage["steps"]
        assert len(set(steps)) == len(steps), "no step is evaluated twice"
        (last,) = [entry for entry in stage["log"] if "eval_loss" in entry and entry["step"] == stage["steps"]]
        assert stage["evaluation"] == {name: value for name, value in last.items() if name != "step"}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a child")
def test_a_run_that_was_killed_goes_on_with_the_same_log_and_says_from_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("killed", "straight"):
        (tmp_path / name).mkdir()
    settings = {"logging_steps": 1, "save_steps": 3}
    straight = train(config_of(tmp_path / "straight", **settings))
    config = config_of(tmp_path / "killed", **settings)
    run = Path(config.output_dir)

    def killed() -> None:
        os.environ |= {"AT": "11", "SIGNAL_AT": "9"}
        train(config)

    os.waitpid(in_a_child(killed, tmp_path / "child.log"), 0)
    before = lines_of(run)
    assert before[-1]["step"] > 3, "steps were logged behind the last checkpoint"
    with (run / "log.jsonl").open("a") as file:
        file.write('{"stage": "stage2", "st')  # as where the disk was full, or the process killed in the middle
    capsys.readouterr()
    train(config)
    printed = capsys.readouterr().out
    assert f"stage 1 of 2 (stage2): goes on from {run / 'stage2' / 'checkpoint-3'}\n" in printed
    assert re.search(r"stage 1 of 2 \(stage2\): \d+ steps, from step 3\n", printed)
    assert [without_times(entry) for entry in lines_of(run)] == [without_times(e) for e in lines_of(straight)]


@pytest.mark.slow
def test_a_finished_stage_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(tmp_path)
    run = train(config)
    (run / "run.json").unlink()
    before = (run / "log.jsonl").read_text()
    capsys.readouterr()
    train(config)
    printed = capsys.readouterr().out
    assert printed == "stage 1 of 2 (stage2): finished already\nstage 2 of 2 (stage3): finished already\n"
    assert (run / "log.jsonl").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("where", ["run", "stage"])
def test_reports_go_where_the_configuration_says(tmp_path: Path, where: str) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = {"use_cpu": True, "report_to": ["tensorboard"]} if where == "stage" else {"use_cpu": True}
    config = config_of(tmp_path, logging_steps=2, trainer=trainer)
    config.report_to = ["tensorboard"] if where == "run" else []
    run = train(config)
    (events,) = (run / "stage2").rglob("events.out.tfevents*")
    read = EventAccumulator(str(events))
    read.Reload()
    losses = [entry["loss_assign"] for entry in lines_of(run) if entry["stage"] == "stage2" and "loss_assign" in entry]
    assert [event.value for event in read.Scalars("train/loss_assign")] == pytest.approx(losses)
    assert len(read.Scalars("train/samples_per_s")) == len(losses)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mlflow", r"stages.stage2: report_to names 'mlflow', whose package is not installed: pip install mlflow, or "),
        ("wandbb", r"stages.stage2: report_to names 'wandbb'; did you mean 'wandb'\?"),
    ],
)
def test_a_report_that_cannot_be_is_refused_before_anything_trains(tmp_path: Path, name: str, message: str) -> None:
    config = config_of(tmp_path, trainer={"use_cpu": True})
    config.report_to = [name]
    with pytest.raises(TPOError, match=message):
        train(config)
    assert not (tmp_path / "run" / "stage2").exists()


def log_of(tmp_path: Path, heads: list[str], time: Any = lambda: 0.0) -> tuple[StageLog, io.StringIO]:
    trainer = SimpleNamespace(is_world_process_zero=lambda: True, args=SimpleNamespace(disable_tqdm=False))
    clocks: Any = SimpleNamespace(trainer=trainer, recent=lambda: FOUND, warn_of_the_loader=lambda *_: None)
    out = io.StringIO()
    return StageLog(tmp_path, "stage2", ["stage1", "stage2"], heads, clocks, Console(file=out), clock=time), out


def state(step: int) -> Any:
    return SimpleNamespace(global_step=step, max_steps=100, is_world_process_zero=True, log_history=[])


def test_lines_for_a_reader(tmp_path: Path) -> None:
    now = [0.0]
    log, out = log_of(tmp_path, ["box", "box_more"], lambda: now[0])
    log.on_train_begin(None, state(0), None)
    losses = {"loss": 1.5, "loss_mllm": 0.25, "loss_assign": 0.5, "loss_box": 0.75}
    now[0] = 80.0
    log.on_log(None, state(20), None, {**losses, "assign_accuracy": 0.5, "learning_rate": 1e-3})
    free = {"eval_free_box_emission": 0.75, "eval_free_box_more_emission": 0.25, "eval_free_box_acc@0.5": 0.5}
    log.on_log(None, state(20), None, {"eval_loss": 2.0, "eval_box_more_iou": 0.125, "eval_runtime": 9.0, **free})
    now[0] = 200.0
    log.on_log(None, state(50), None, {**losses, "assign_accuracy": 1.0, "learning_rate": 1e-3})
    assert out.getvalue().splitlines() == [
        "stage 2 of 2 (stage2): 100 steps",
        "   step     loss     mllm   assign      box  triggers  samples/s     left",
        "     20      1.5     0.25      0.5     0.75       50%      12.34     5:20",
        "evaluated after step 20: loss 2",
        "  box, in free answers: emission 0.75, acc@0.5 0.5",
        "  box_more: iou 0.125",
        "  box_more, in free answers: emission 0.25",
        "   step     loss     mllm   assign      box  triggers  emission  samples/s     left",
        "     50      1.5     0.25      0.5     0.75      100%       25%      12.34     3:20",
    ]


def test_a_terminal_shows_a_bar_that_is_gone_in_the_end(tmp_path: Path) -> None:
    now = [0.0]
    log, out = log_of(tmp_path, [], lambda: now[0])
    log.console = Console(file=out, force_terminal=True, width=100)
    with log.shown():
        log.on_train_begin(None, state(0), None)
        now[0] = 60.0
        log.on_step_end(None, state(25), None)
        assert re.search(
            r"stage 2 of 2 \(stage2\).*25/100.*3:00 left", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
        )
    assert out.getvalue().endswith("\x1b[2K")
    log.clocks.trainer.args.disable_tqdm = True
    before = out.getvalue()
    with log.shown():
        log.on_step_end(None, state(50), None)
    assert out.getvalue() == before
