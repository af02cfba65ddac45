"""Scripts on two ranks of the CPU, with gloo between them, and DeepSpeed there.

As a script it runs another one so, as a rank that torchrun starts: `torchrun … ranks.py SCRIPT ARGUMENTS`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRIES_FSDP = int(version("transformers").partition(".")[0]) >= 5
"""FSDP2 is tried on the newest transformers only."""
LIMIT_S = 500
"""A process that has not ended by then never will, and is to say where it stands; the slowest takes a fifth of that."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def two_ranks(
    script: str | Path, *arguments: object, limit_s: float = LIMIT_S, **variables: str
) -> tuple[list[int], list[str]]:
    """Exit statuses of a script with these arguments as rank 0 and as rank 1, and what each wrote as errors.

    Raises `subprocess.TimeoutExpired` where one does not end by `limit_s`.
    """
    common = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | variables,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=limit_s)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], errors


def on_two_ranks(script: str | Path, *arguments: object) -> None:
    """Runs a script with these arguments as rank 0 and as rank 1; raises `AssertionError` with what they wrote."""
    statuses, errors = two_ranks(script, *arguments)
    assert statuses == [0, 0], "\n".join(error[-3000:] for error in errors)


def in_a_child(work: Callable[[], None], log: Path) -> int:
    """The process id of a fork that does the work and exits with 0, or with 1 and a traceback in the log.

    One that does not end writes there where each of its threads stands, and exits with 1 too.
    """
    import torch
    from accelerate.state import AcceleratorState
    from tqdm import tqdm

    child = os.fork()
    if child:
        return child
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=2)
        torch.set_num_threads(1)  # in the parent it would make a pool of threads, which no fork may have
        AcceleratorState._reset_state(reset_partial_state=True)
        tqdm.set_lock(threading.RLock())  # its own is shared by all forks: one killed with it would hold the others
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def forked_on_two_ranks(work: Callable[[], None], folder: Path) -> None:
    """Does the work in two forks, with everything imported; raises `AssertionError` with what they wrote."""
    forked(work, folder, 2)


def forked(work: Callable[[], None], folder: Path, num_ranks: int) -> None:
    """`forked_on_two_ranks`, on any number of them."""
    variables = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    variables["OMP_NUM_THREADS"] = "1"

    def of_rank(rank: int) -> None:
        os.environ |= variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        work()

    logs = [folder / f"rank{rank}.log" for rank in range(num_ranks)]
    children = [in_a_child(functools.partial(of_rank, rank), log) for rank, log in enumerate(logs)]
    try:
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    except BaseException:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        raise
    assert statuses == [0] * num_ranks, "\n".join(log.read_text()[-3000:] for log in logs)


def use_deepspeed() -> None:
    """Lets this rank train under DeepSpeed without a GPU, and without a kernel that must be compiled first."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    from accelerate.state import DistributedType, PartialState

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_CPU)  # accelerate looks for a GPU here


def use_fsdp() -> None:
    """Lets this rank train under FSDP2 without a GPU."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    from accelerate.state import DistributedType, PartialState

    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)  # accelerate looks for a GPU here


if __name__ == "__main__":
    use_deepspeed()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
