"""vLLM with checkpoints that `tpo export` wrote: a task token follows its trigger, and nothing else puts it.

No vLLM in here; its processor is `tpo_patch_vllm.processor`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HEADS_FILE = "tpo_heads.json"
"""What `tpo export` says of the heads, beside the checkpoint."""


@dataclass(frozen=True)
class TaskTokenRule:
    """Which token follows which, and which are never chosen; rows R of a step's logits, V vocabulary."""

    triggers: Tensor
    """int64 [K]"""
    tasks: Tensor
    """int64 [K]: behind each trigger."""
    never: Tensor
    """int64: chosen by no model."""

    @classmethod
    def read(cls, path: str | Path, device: torch.device | str = "cpu") -> TaskTokenRule:
        """That of a `tpo_heads.json`."""
        described: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        heads = described["heads"].values()
        ids = [[h["trigger_id"] for h in heads], [h["task_id"] for h in heads], described["never_emitted"]]
        return cls(*(torch.tensor(own, dtype=torch.int64, device=device) for own in ids))

    def apply(self, logits_RV: Tensor, last_R: Tensor) -> Tensor:
        """The logits, changed in place, where `last_R` is the newest token of each row; no wait for the device."""
        is_trigger = last_R.to(logits_RV.device, torch.int64)[:, None] == self.triggers  # [R, K]
        follows = is_trigger.any(-1, keepdim=True)
        forced = (is_trigger * self.tasks).sum(-1, keepdim=True)
        logits_RV.index_fill_(-1, self.never, float("-inf"))
        logits_RV.masked_fill_(follows, float("-inf"))
        return logits_RV.scatter_(-1, forced, torch.where(follows, 0.0, logits_RV.gather(-1, forced)))
