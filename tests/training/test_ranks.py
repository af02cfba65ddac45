"""Runs on two ranks: one of them fails, or another number of them goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import torch
from ranks import on_two_ranks, two_ranks

from tpo_plugin.training.run import read_run, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]


def ranks_with(config, **variables):
    """Exit statuses of two ranks of a run, and what each wrote."""
    return two_ranks(tiny_run.__file__, "run", config, limit_s=280, **variables)


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_ends_the_other_with_its_reason(failing, tmp_path):
    config = tiny_run.write_world(tmp_path, stages=["stage2"])
    statuses, errors = ranks_with(config, AT="5", RANK_AT=str(failing))
    assert statuses == [1, 1]
    assert "ValueError: the point head has had enough" in errors[failing]
    assert f"rank {failing} failed first: ValueError: the point head has had enough" in errors[1 - failing]


def test_one_that_is_killed_ends_the_other(tmp_path):
    config = tiny_run.write_world(tmp_path, stages=["stage2"])
    statuses, errors = ranks_with(config, AT="5", RANK_AT="1", SIGNAL_AT="9")
    assert statuses == [1, -signal.SIGKILL]
    assert "another rank ended without a word, as a process does that was killed" in errors[0]


def test_a_signal_to_one_stops_both_after_the_same_step(tmp_path):
    config = tiny_run.write_world(tmp_path, stages=["stage2"])
    statuses, errors = ranks_with(config, AT="5", RANK_AT="1", SIGNAL_AT=str(int(signal.SIGTERM)))
    assert statuses == [143, 143]
    assert "SIGTERM: stopped after step 5, with a checkpoint" in errors[0]
    on_two_ranks(tiny_run.__file__, "run", config)
    assert read_run(tmp_path / "run")["stages"]["stage2"]["steps"] == 12


def test_a_record_that_either_rank_cannot_read_is_named(tmp_path):
    config = tiny_run.write_world(tmp_path, stages=["stage2"])
    records = (tmp_path / "tasks.jsonl").read_text().splitlines()
    for line in (3, 12):
        broken = json.loads(records[line]) | {"image": "gone.png"}
        broken["conversations"][0]["value"] = "<image>" + broken["conversations"][0]["value"]
        records[line] = json.dumps(broken)
    (tmp_path / "tasks.jsonl").write_text("\n".join(records))
    values = json.loads(config.read_text())
    values["data"] = {"max_bad_share": 0.2}
    values["stages"]["stage2"].pop("eval_data")
    config.write_text(json.dumps(values))
    on_two_ranks(tiny_run.__file__, "run", config)
    media = read_run(tmp_path / "run")["stages"]["stage2"]["media"]
    assert ", 2 skipped" in media
    assert "tasks.jsonl:4 " in media
    assert "tasks.jsonl:13 " in media


def test_another_number_of_ranks_goes_on_from_the_checkpoint(tmp_path, caplog):
    """Without dropout the ranks' random states change nothing, and the losses are those of one process."""
    torch.set_num_threads(1)
    tiny_run.install_head()
    worlds = {name: tmp_path / name for name in ("straight", "two_then_one", "one_then_two")}
    configs = {}
    for name, folder in worlds.items():
        folder.mkdir()
        configs[name] = tiny_run.write_world(folder, stages=["stage2"], lora={"r": 2, "alpha": 4})
    train(configs["straight"])
    statuses, _ = ranks_with(configs["two_then_one"], AT="5", RANK_AT="0", SIGNAL_AT="15")
    assert statuses == [143, 143]
    train(configs["two_then_one"])
    assert [
        line
        for line in caplog.messages
        if "was written by 2 rank(s), and here are 1: it goes on with the same 4" in line
    ]

    stopped = subprocess.run(
        [sys.executable, tiny_run.__file__, "run", str(configs["one_then_two"])], capture_output=True,
        env=os.environ | {"AT": "9", "SIGNAL_AT": "15", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert stopped.returncode == 143
    on_two_ranks(tiny_run.__file__, "run", configs["one_then_two"])
    runs = {name: read_run(folder / "run")["stages"]["stage2"]["log"] for name, folder in worlds.items()}
    losses = {name: [e.get("loss", e.get("eval_loss", e.get("train_loss"))) for e in log] for name, log in runs.items()}
    assert losses["two_then_one"] == pytest.approx(losses["straight"], rel=1e-3)
    assert losses["one_then_two"] == pytest.approx(losses["straight"], rel=1e-3)
