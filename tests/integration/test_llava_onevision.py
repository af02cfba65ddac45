"""Every configuration of examples/llava_onevision is loaded and trains, at tiny size with the hardware switched off."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import onevision
import pytest
import torch
from ranks import TRIES_FSDP, on_two_ranks
from torch.distributed.run import get_args_parser

from tpo_plugin.training.config import TrainConfig
from tpo_plugin.training.run import load_run, read_run, train

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]

deepspeed = [
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed, which .ci/run installs for this"),
]
fsdp = [
    pytest.mark.slow,
    pytest.mark.skipif(not TRIES_FSDP, reason="FSDP2 is tried on the newest transformers only"),
]
CONFIGS = sorted(path.name for path in onevision.EXAMPLE.glob("*.yaml"))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onevision.make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CONFIGS)
def test_batches_divide_among_the_gpus(name: str) -> None:
    config = TrainConfig.from_yaml(onevision.EXAMPLE / name)
    ranks = [1] if name == "one_gpu.yaml" else [8, 16, 32]
    for stage in config.stages.values():
        assert [stage.accumulation(number) * number * stage.micro_batch_size for number in ranks] == [
            stage.batch_size for _ in ranks
        ]


def launches() -> list[str]:
    """What README.md and slurm.sh start by torchrun."""
    readme = (onevision.EXAMPLE / "README.md").read_text(encoding="utf-8")
    slurm = (onevision.EXAMPLE / "slurm.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    return [*re.findall(r"`(torchrun .*?)`", readme), *re.findall(r"^srun (torchrun .*)$", slurm, re.MULTILINE)]


def test_launch_commands() -> None:
    started = set()
    for launch in launches():
        given = get_args_parser().parse_args(shlex.split(launch)[1:])
        assert (given.no_python, given.training_script, given.training_script_args[0]) == (True, "tpo", "train")
        assert given.nproc_per_node == "8"
        started.add(Path(given.training_script_args[1]).relative_to("examples/llava_onevision").name)
    assert started == {name for name in CONFIGS if "eight" in name}


def check(run: Path) -> None:
    """All stages were stepped with every loss of theirs, and what they trained loads back."""
    stages = read_run(run)["stages"]
    assert list(stages) == ["stage1", "stage2", "stage3"]
    for name, stage in stages.items():
        (log,) = [entry for entry in stage["log"] if "loss" in entry]
        expected = {"loss_mllm", "loss_assign"} | (set() if name == "stage1" else {"loss_region", "loss_temporal"})
        assert {key for key in log if key.startswith("loss_")} == expected
    model = load_run(run)
    assert list(model.tpo.heads) == ["region", "temporal"]
    assert all(row.output.any() for row in model.tpo.embeddings.values())
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.slow
def test_one_gpu(world: Path) -> None:
    check(train(onevision.tiny("one_gpu.yaml", use_cpu=True)))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=deepspeed if "zero" in name else fsdp) for name in CONFIGS if "eight" in name]
)
def test_two_ranks(name: str, world: Path) -> None:
    on_two_ranks(onevision.__file__, name, world)
    check(world / "run")
