"""`tpo train` on two ranks of the CPU, started by three launchers: the losses of one process."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_run
import torch
from ranks import ROOT, free_port

from tpo_plugin.training.run import read_run, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]

# Without a GPU `accelerate launch` starts several ranks by --multi_gpu alone; --cpu leaves that to MPI.
ACCELERATE = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port"],
    "accelerate": ["accelerate.commands.launch", "--num_processes", "2", *ACCELERATE, "--main_process_port"],
    "deepspeed": ["deepspeed.launcher.runner", "--no_local_rank", "--num_gpus", "2", "--master_port"],
}


def losses(folder: Path) -> list[float]:
    log = read_run(folder / "run")["stages"]["stage2"]["log"]
    return [entry.get("loss", entry.get("eval_loss", entry.get("train_loss"))) for entry in log]


def write_world(folder: Path) -> Path:
    """Without dropout, whose random states are each rank's own."""
    folder.mkdir()
    return tiny_run.write_world(folder, stages=["stage2"], lora={"r": 2, "alpha": 4})


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    torch.set_num_threads(1)
    tiny_run.install_head()
    folder = tmp_path_factory.mktemp("straight") / "world"
    train(write_world(folder))
    return losses(folder)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_ranks_train_what_one_process_does(launcher, tmp_path, straight):
    if launcher == "deepspeed" and find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed, which .ci/run installs for this")
    config = write_world(tmp_path / "world")
    done = subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher], str(free_port()), tiny_run.__file__, "cli", "train", str(config)],
        capture_output=True, text=True,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "DS_ACCELERATOR": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    ranks = read_run(tmp_path / "world" / "run")["stages"]["stage2"]
    assert ranks["steps"] == 12
    assert losses(tmp_path / "world") == pytest.approx(straight, rel=1e-3)
