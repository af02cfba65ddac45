"""Ranks whose batches hold different media: those without a kind run its vision tower idle, with the others."""

from __future__ import annotations

from typing import Any

import torch

from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.host.idle import FEATURES

KINDS = (*FEATURES, "images")
"""What a batch may hold for its media."""


def share_media(trainer: Any, batches: list[Any]) -> None:
    """Puts into each batch the kinds of media that it lacks and another rank's batch of the same forward has.

    Raises `TPOError`, on every rank, where a tower cannot run idle and the engine needs all ranks to run it.
    Collective.
    """
    accelerator = trainer.accelerator
    present = torch.tensor([[batch.get(kind) is not None for kind in KINDS] for batch in batches], dtype=torch.int64)
    totals = accelerator.reduce(present.to(accelerator.device), "sum").cpu()
    differs = (totals % accelerator.num_processes).bool()
    kinds = [kind for kind, any_differs in zip(KINDS, differs.any(0).tolist(), strict=True) if any_differs]
    if not kinds:
        return
    try:
        trainer.tpo.hooks.idle.check(kinds)
    except HostError as error:
        if not trainer.runs_in_step:
            return  # DDP looks for parameters without a gradient
        raise TPOError(
            f"in one forward some ranks have {kinds} and others have none, and under DeepSpeed and FSDP all must run "
            f"the same modules: {error}; give each forward samples with the same kinds of media on all ranks (tpo "
            "train does)"
        ) from error
    for batch, lacks in zip(batches, (differs & (present == 0)).tolist(), strict=True):
        batch["task_idle_media"] = tuple(kind for kind, lacking in zip(KINDS, lacks, strict=True) if lacking)
