"""Every engine trains what one process trains, where the ranks hold other tasks, or other media: a short form of the
benchmark `engines`."""

from pathlib import Path

import pytest
import torch
from benchmarks import engines

pytestmark = pytest.mark.slow

STEPS = 4
RANKS = {"DDP": 3, "ZeRO-1": 2, "ZeRO-2": 3, "ZeRO-3": 3, "FSDP2": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("world")
    engines.make_world(folder)
    return folder


@pytest.mark.parametrize("case", engines.KINDS)
@pytest.mark.parametrize("engine", engines.ENGINES[1:])
def test_the_same_as_one_process(engine: str, case: str, world: Path) -> None:
    if engine not in engines.engines():
        pytest.skip(f"{engine} is not installed, or tried on the newest transformers only")
    ranks = RANKS.get(engine, 3)
    expected = engines.run("one process", ranks, case, world, STEPS)
    losses, parameters = engines.apart(engines.run(engine, ranks, case, world, STEPS), expected)
    assert losses < 1e-6
    assert parameters < 1e-6
