"""What training leaves out at random: single numbers, and whole branches of samples. Suffix: N samples.

On the CPU a draw for each number takes as long as a matrix product, so that masks are cut from random words there: each
number takes 16 bits of one, which rounds the share that is dropped to 1 / 65536.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def draw_dropped(shape: torch.Size, p: float) -> Tensor:
    """bool of that shape on the CPU, True for a share `p` at random."""
    limits = torch.iinfo(torch.int64)
    words = torch.randint(limits.min, limits.max, (shape.numel() // 4 + 1,))
    return words.view(torch.int16)[: shape.numel()].view(shape) < round(p * 65536) - 32768


class Dropout(nn.Dropout):
    """In training zero for a share `p` of the numbers, the others scaled up."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        scales = input.new_tensor([1 / (1 - self.p), 0.0])
        return input * torch.where(draw_dropped(input.shape, self.p), scales[1], scales[0])


class DroppedPReLU(nn.PReLU):
    """PReLU with one learned slope, initially 0.25, and dropout behind it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        slope = self.weight.float()
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return F.dropout(F.prelu(input, slope), self.p, self.training)
        return _DroppedPReLU.apply(input, slope, self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class _DroppedPReLU(torch.autograd.Function):
    """Both at once on the CPU, where torch's kernel for a PReLU's gradient is several times slower."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, slope: Tensor, p: float) -> Tensor:
        dropped = draw_dropped(input.shape, p)
        ctx.save_for_backward(input, slope, dropped)
        ctx.scale = 1 / (1 - p)
        return F.leaky_relu(input, slope.item()).mul_(ctx.scale).masked_fill_(dropped, 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        input, slope, dropped = ctx.saved_tensors
        gradient = (gradient * ctx.scale).masked_fill_(dropped, 0)
        of_slope = torch.dot(gradient.flatten(), input.clamp(max=0).flatten())
        return torch.ops.aten.leaky_relu_backward(gradient, input, slope.item(), False), of_slope.view(1), None


class DropPath(nn.Module):
    """Stochastic depth: in training a sample loses its whole branch with probability `p`, the others' are scaled up."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, branch: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """x + branch(*inputs), all [N, ...]. The branch is computed for the samples that keep it alone."""
        if not self.training or self.p == 0:
            return x + branch(*inputs)
        # Drawn on the CPU, so that the number of rows is known without waiting for a GPU.
        rows = (torch.rand(len(x)) >= self.p).nonzero()[:, 0].to(x.device, non_blocking=True)
        kept = branch(*(value.index_select(0, rows) for value in inputs))
        return x.index_add(0, rows, kept, alpha=1 / (1 - self.p))
