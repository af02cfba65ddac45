"""Optimizers of transformers besides its default: a run that was stopped goes on with them as if it had not been."""

import json
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_run
import torch
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves

from tpo_plugin.training import checkpoints
from tpo_plugin.training.run import train

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]
NEEDS = {"adamw_8bit": "bitsandbytes", "lion_8bit": "bitsandbytes"}


@pytest.mark.parametrize("name", ["adafactor", *NEEDS])
def test_stopped_and_resumed_is_bitwise_the_same(name, tmp_path, monkeypatch):
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}, which .ci/run installs for this")
    torch.set_num_threads(1)
    tiny_run.install_head()
    runs = []
    for folder in (tmp_path / "whole", tmp_path / "stopped"):
        folder.mkdir()
        config = tiny_run.write_world(folder, stages=["stage2"])
        values = json.loads(config.read_text())
        values["lora"]["r"] = 512  # 8-bit states are kept of what has 4096 values and more
        values["stages"]["stage2"]["trainer"] |= {"optim": name}
        config.write_text(json.dumps(values))
        runs.append(config)
    before = train(runs[0])
    monkeypatch.setattr(tiny_run.PointHead, "num_forwards", 0)
    monkeypatch.setenv("AT", "9")
    monkeypatch.setenv("SIGNAL_AT", str(int(signal.SIGTERM)))
    with pytest.raises(SystemExit):
        train(runs[1])
    monkeypatch.delenv("AT")
    checkpoint = Path(checkpoints.last_checkpoint(tmp_path / "stopped" / "run" / "stage2"))
    leaves = tree_leaves(torch.load(checkpoint / "optimizer.pt", weights_only=False)["state"])
    kinds = {leaf.dtype for leaf in leaves if isinstance(leaf, torch.Tensor)}
    assert (torch.uint8 in kinds) == (name in NEEDS)
    again = train(runs[1])
    for file in ("adapter_model.safetensors", "tpo_model.safetensors"):
        mine, theirs = load_file(again / file), load_file(before / file)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
