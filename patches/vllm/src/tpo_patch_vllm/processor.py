"""The processor that vLLM loads, for both of its model runners.

Model runner V2 tells the newest token of each row of logits; the older one tells which request stands in which row, and
keeps the list of its tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.utils import cached_file
from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV2

from tpo_patch_vllm import HEADS_FILE, TaskTokenRule


class TaskTokens(LogitsProcessor, LogitsProcessorV2):
    """Does nothing to models without a `tpo_heads.json`."""

    def __init__(self, vllm_config: Any, *state: Any) -> None:
        model = vllm_config.model_config
        path = cached_file(
            model.model, HEADS_FILE, revision=model.revision, _raise_exceptions_for_missing_entries=False
        )
        is_v2 = len(state) == 1  # the state of requests; else the device, and whether memory is pinned
        device = state[0].device if is_v2 else state[0]
        self.rule = None if path is None else TaskTokenRule.read(path, device)
        self.answers: dict[int, list[int]] = {}
        """The older runner's: the tokens of the answer in each row, which it goes on to fill."""
        asynchronous = bool(vllm_config.scheduler_config.async_scheduling)
        if self.rule is not None and not is_v2 and asynchronous and not model.logits_processors:
            raise RuntimeError(
                "this model runner of vLLM tells processors found by entry point no tokens while it schedules "
                "asynchronously; give --logits-processors tpo_patch_vllm.processor:TaskTokens, or --no-async-scheduling"
            )

    def is_argmax_invariant(self) -> bool:
        """It is not: it decides what is chosen."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Keeps which answer stands in which row; in the order that vLLM asks for."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.answers.pop(row, None)
        for row, _, _, answer in batch_update.added:
            self.answers[row] = answer
        for source, target, direction in batch_update.moved:
            moved, there = self.answers.pop(source, None), self.answers.pop(target, None)
            if moved is not None:
                self.answers[target] = moved
            if there is not None and direction == MoveDirectionality.SWAP:
                self.answers[source] = there

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """The logits [rows, vocabulary], changed in place."""
        if self.rule is None:
            return logits
        if ctx is not None:
            return self.rule.apply(logits, ctx.input_ids)
        last = [(self.answers.get(row) or [-1])[-1] for row in range(len(logits))]
        return self.rule.apply(logits, torch.tensor(last))
