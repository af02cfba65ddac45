"""Sine codes of positions in time. Suffixes: N samples, L clips, d width."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_code(position: Tensor, width: int) -> Tensor:
    """Positions in 0 to 1, [...], as [..., width]: sin and cos interleaved, times 2 pi, temperatures up to 10000."""
    i = torch.arange(width, dtype=torch.float32, device=position.device)
    temperature = 10000 ** (2 * (i // 2) / width)
    angle = position.float()[..., None] * (2 * math.pi) / temperature
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-2)


def clip_clock(mask_NL: Tensor) -> Tensor:
    """Where in the video each clip ends, 0 to 1, [N, L], for clips of equal length; constant over the padding."""
    count = mask_NL.cumsum(-1)
    return count / (count[..., -1:] + 1e-6)


def to_start_end(spans_cw: Tensor) -> Tensor:
    """(centre, width) to (start, end), [..., 2]."""
    centre, width = spans_cw.unbind(-1)
    return torch.stack((centre - width / 2, centre + width / 2), -1)


def to_centre_width(spans: Tensor) -> Tensor:
    """(start, end) to (centre, width), [..., 2]."""
    start, end = spans.unbind(-1)
    return torch.stack(((start + end) / 2, end - start), -1)
