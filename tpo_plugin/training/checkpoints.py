"""Checkpoints: which one a run goes on from, and which are deleted."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from tpo_plugin.errors import TPOError
from tpo_plugin.training.whole import damage, remove

logger = logging.getLogger(__name__)


@contextmanager
def adapter_only(model: nn.Module) -> Iterator[None]:
    """Keeps a `PeftModel` from saving the host's embedding matrices because the vocabulary grew for the task tokens."""
    if not hasattr(model, "peft_config") or model.tpo.growth is None:
        yield
        return
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)
    try:
        yield
    finally:
        del model.save_pretrained


def numpy_state_allowed() -> AbstractContextManager[None]:
    """Lets transformers 4.45 read numpy's random state from a checkpoint, which torch >= 2.6 takes for unsafe."""
    allowed = getattr(torch.serialization, "safe_globals", None)
    if allowed is None:
        return nullcontext()
    array = np.zeros(1, dtype=np.uint32)
    return allowed([array.__reduce__()[0], np.ndarray, np.dtype, type(array.dtype)])


def last_checkpoint(directory: str | os.PathLike[str], before: int | None = None) -> str | None:
    """The checkpoint of the highest step in a folder that is as it was written, or None where there is none at all.

    With `before`, of a step below it. All ranks call it, and get the same. Those that are passed over are named in the
    log. Raises `TPOError` where there are checkpoints and each is damaged.
    """
    state = PartialState()
    everywhere = {step for steps in gathered([list(_by_step(directory))]) for step in steps}
    found = {step for step in everywhere if before is None or step < before}
    reasons: list[str] = []
    for step in sorted(found, reverse=True):
        path = Path(directory) / f"checkpoint-{step}"
        # The first rank of each machine looks, for each may have its own disk.
        seen = gathered([damage(path) if state.is_local_main_process else None])
        reason = next((text for text in seen if text), None)
        if reason is None:
            for line in reasons if state.is_main_process else ():
                logger.warning("%s; the one before it is taken", line)
            return str(path)
        reasons.append(f"{path} is passed over: {reason}")
    if reasons:
        lines = "".join(f"\n  {line}" for line in reasons)
        raise TPOError(
            f"{directory}: no checkpoint is as it was written; put one back, or remove them to begin from the start"
            f"{lines}"
        )
    return None


def gathered(values: list[Any]) -> list[Any]:
    """The values of all ranks, each of which calls it."""
    return gather_object(values) if PartialState().num_processes > 1 else values


def rotate(directory: str | os.PathLike[str], step: int, limit: int | None, best: str | None) -> None:
    """Deletes checkpoints up to the one of this step, which is whole, until `limit` are left; never it, nor the best.

    Those go first that are cut or have lost a file, then the lowest step.
    """
    if not limit or limit < 1:
        return
    paths = {number: path for number, path in _by_step(directory).items() if number <= step}
    order = sorted(paths, key=lambda number: (damage(paths[number], contents=False) is None, number))
    kept = {
        number for number in order if number == step or (best is not None and paths[number].name == Path(best).name)
    }
    others = [number for number in order if number not in kept]
    for number in others[: max(len(order) - max(limit, len(kept)), 0)]:
        remove(paths[number])


def num_ranks(checkpoint: str | os.PathLike[str]) -> int:
    """How many ranks wrote a checkpoint."""
    return len(list(Path(checkpoint).glob("rng_state_*.pth"))) or 1


def _by_step(directory: str | os.PathLike[str]) -> dict[int, Path]:
    found = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in Path(directory).glob("checkpoint-*")}
    return {int(match.group(1)): path for path, match in found.items() if match and path.is_dir()}
