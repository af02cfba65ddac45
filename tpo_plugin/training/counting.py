"""How many targets of each kind a step has, over all of its micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tpo_plugin.errors import TPOError
from tpo_plugin.positions import Counts, count_targets

if TYPE_CHECKING:
    from tpo_plugin.model import TaskPreferenceModel


def count_step(
    tpo: TaskPreferenceModel,
    batches: list[Any],
    add_ranks: Callable[[Tensor], Tensor],
    *,
    scale: int,
    measure: bool,
    logits: bool,
) -> Counts:
    """At least 1 of each kind; put into every batch of the step. `add_ranks` adds numbers over ranks."""
    heads = list(tpo.heads)
    total = torch.zeros(3 + len(heads), dtype=torch.int64)
    for batch in batches:
        found = count_batch(tpo, batch)
        total += torch.tensor([found.mllm, found.assign, found.retain, *(found.heads[name] for name in heads)])
    mllm, assign, retain, *of_heads = add_ranks(total).clamp(min=1).tolist()
    by_head = dict(zip(heads, of_heads, strict=True))
    counts = Counts(mllm, assign, by_head, scale, measure, logits=logits, retain=retain)
    for batch in batches:
        batch["task_counts"] = counts
    return counts


def count_batch(tpo: TaskPreferenceModel, batch: Any) -> Counts:
    """Those of one micro-batch. Raises `TPOError` for a batch without ids."""
    host, shift = tpo.host, tpo.host.label_shift
    ids = host.ids_of(tpo.model, dict(batch), tpo.tokens)
    if ids is None:
        raise TPOError(f"a batch has {sorted(batch)} and no {host.ids}, in which the task tokens stand")
    found = count_targets(ids, batch.get("labels"), tpo.tokens, batch.get("task_positions"), shift)
    targets = batch.get("task_targets") or {}
    return replace(found, heads={n: tpo.heads[n].num_targets(targets.get(n)) for n in found.heads})
