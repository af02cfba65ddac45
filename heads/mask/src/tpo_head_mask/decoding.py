"""The masks that training and evaluation look at: each target's prompted frame, and the frames after it.

N targets, T frames of the longest, h = w = a quarter of SAM 2's input.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from tpo_head_mask.backends.base import Backend, Decoded, Features


def decode_clips(
    backend: Backend, features: Features | None, prompts_N3C: Tensor, index: list[list[int]], *, dynamic: bool
) -> dict[str, Tensor]:
    """`mask_logits` [N, T, h, w], `iou` and `object_score_logits` [N, T]; 0 behind a target's last frame.

    `index` lists the frames of each target. Targets of one frame are decoded together; those of as many frames go
    through SAM 2's memory together. `dynamic` as for `Backend.decode`.
    """
    side = backend.architecture.grid * 4
    length = max((len(row) for row in index), default=1)
    if features is None:
        nothing = prompts_N3C.sum() * 0
        empty = prompts_N3C.new_zeros(0, length)
        logits = prompts_N3C.new_zeros(0, length, side, side) + nothing
        return {"mask_logits": logits, "iou": empty + nothing, "object_score_logits": empty + nothing}
    if length == 1:
        frames = torch.tensor([row[0] for row in index], device=prompts_N3C.device)
        steps = [backend.decode(features[frames], prompts_N3C, dynamic=dynamic)]
        return _stacked(steps, length)
    by_length: dict[int, list[int]] = defaultdict(list)
    for target, row in enumerate(index):
        by_length[len(row)].append(target)
    parts: list[dict[str, Tensor]] = []
    order: list[int] = []
    for targets in by_length.values():
        rows = [index[target] for target in targets]
        clips = rows[:1] if all(row == rows[0] for row in rows) else rows
        with backend.dynamic_multimask(dynamic):
            tracker = backend.start(prompts_N3C[targets])
            steps = [tracker.step(features[list(frames)]) for frames in zip(*clips, strict=True)]
        parts.append(_stacked(steps, length))
        order += targets
    back = torch.tensor(order, device=prompts_N3C.device).argsort()
    return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}


def _stacked(steps: list[Decoded], length: int) -> dict[str, Tensor]:
    found = {
        "mask_logits": torch.cat([step.mask_logits for step in steps], 1),
        "iou": torch.cat([step.iou for step in steps], 1),
        "object_score_logits": torch.stack([step.object_score_logits for step in steps], 1),
    }
    return {
        name: torch.cat([value, value.new_zeros(len(value), length - len(steps), *value.shape[2:])], 1)
        for name, value in found.items()
    }
