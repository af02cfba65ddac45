"""Runs on shards and tables: those of JSON Lines with the same records, on ranks, with workers, and when they go on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import torch
from ranks import ROOT, on_two_ranks
from shards import write_tar

from tpo_plugin import TPOError
from tpo_plugin.training.run import read_run, train

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]


def as_shards(file: Path) -> str:
    """The records of a JSON Lines file in tar shards of three."""
    lines = file.read_bytes().splitlines()
    for shard, start in enumerate(range(0, len(lines), 3)):
        members = ((f"{number}.json", lines[number]) for number in range(start, min(start + 3, len(lines))))
        write_tar(file.with_name(f"{file.stem}-{shard}.tar"), members)
    return f"{file.with_suffix('')}-{{0..{shard}}}.tar"


def as_parquet(file: Path) -> str:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([json.loads(line) for line in file.read_text().splitlines()])
    table.select(range(5)).to_parquet(file.with_name(f"{file.stem}-0.parquet"))
    table.select(range(5, len(table))).to_parquet(file.with_name(f"{file.stem}-1.parquet"))
    return f"{file.with_suffix('')}-*.parquet"


def world(folder: Path, form=str, **data) -> Path:
    """A run without dropout, its records in another form."""
    folder.mkdir()
    path = tiny_run.write_world(folder, stages=["stage2"], lora={"r": 2, "alpha": 4}, data=data)
    config = json.loads(path.read_text())
    stage = config["stages"]["stage2"]
    for source in stage["data"]:
        source["file"] = form(Path(source["file"]))
    stage["eval_data"] = [dict(stage["data"][0])]
    path.write_text(json.dumps(config))
    return path


def losses(config: Path) -> list[float]:
    log = read_run(config.parent / "run")["stages"]["stage2"]["log"]
    return [entry.get("loss", entry.get("eval_loss", entry.get("train_loss"))) for entry in log]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    torch.set_num_threads(1)
    tiny_run.install_head()
    config = world(tmp_path_factory.mktemp("straight") / "world")
    train(config)
    return losses(config)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))  # of the processes that it starts
    if "datasets" in sys.modules:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("form", [as_shards, as_parquet])
def test_a_run_trains_what_it_trains_on_json_lines(form, tmp_path, straight):
    config = world(tmp_path / "world", form)
    train(config)
    assert losses(config) == straight


@pytest.mark.slow
@pytest.mark.parametrize("form", [as_shards, as_parquet])
def test_it_is_stopped_within_an_epoch_and_goes_on_on_two_ranks_with_workers(form, tmp_path, straight):
    config = world(tmp_path / "world", form, num_workers=2)
    stopped = subprocess.run(
        [sys.executable, tiny_run.__file__, "run", str(config)], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"AT": "9", "SIGNAL_AT": "15", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
    )  # fmt: skip
    assert stopped.returncode == 143, stopped.stderr
    on_two_ranks(tiny_run.__file__, "run", config)
    assert losses(config) == pytest.approx(straight, rel=1e-3)


def test_a_run_does_not_go_on_with_another_shard(tmp_path, straight):
    config = world(tmp_path / "world", as_shards)
    whole = json.loads(config.read_text())
    short = whole | {"stages": {"stage2": whole["stages"]["stage2"] | {"save_steps": 2}}}
    config.write_text(json.dumps(short))
    train(config)
    (config.parent / "run" / "run.json").unlink()
    (config.parent / "run" / "stage2" / "stage.json").unlink()
    shard = config.parent / "tasks-1.tar"
    shard.write_bytes(shard.read_bytes().replace(b"where is", b"WHERE is", 1))
    with pytest.raises(TPOError, match=rf"stages\.stage2\.data\[0\]: {shard}: other content of the same"):
        train(config)
