"""Layers that every part of the network shares. They compute in float32 even where their weights were cast.

Suffixes: N samples, S sequence, d width, H attention heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpo_head_temporal.dropout import Dropout, DropPath, DroppedPReLU
from tpo_plugin import Linear


class LayerNorm(nn.LayerNorm):
    """eps 1e-5, affine."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class Tokens(nn.Module):
    """Learned vectors [num, d], read in a forward so that a sharded parameter is gathered; N(0, std)."""

    def __init__(self, num: int, width: int, std: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num, width) * std)

    def forward(self) -> Tensor:
        return self.weight.float()


class MLP(nn.Module):
    """Linear layers with a ReLU between them."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(i, o) for i, o in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class FeedForward(nn.Module):
    """Linear, PReLU, dropout, Linear."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, width)
        self.activation = DroppedPReLU(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


def split_heads(x_NSd: Tensor, num_heads: int) -> Tensor:
    """[N, S, d] to [N, H, S, d / H]: heads are plain slices of the width."""
    return x_NSd.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x_NHSd: Tensor) -> Tensor:
    """The inverse of `split_heads`."""
    return x_NHSd.transpose(1, 2).flatten(-2)


class Attention(nn.Module):
    """Scaled dot-product attention over heads that are slices of the width, with dropout of its weights."""

    def __init__(self, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, Dropout(dropout)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """All [N, S, d]; `mask` is True where allowed, [N, 1, 1 or queries, keys]."""
        q, k, v = (split_heads(x, self.num_heads) for x in (query, key, value))
        p = self.dropout.p if self.training else 0.0
        if p == 0 or q.device.type != "cpu":
            return merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return merge_heads(self.dropout(scores.softmax(-1)) @ v)


class SelfAttention(nn.Module):
    """Queries and keys are x + pos, values x."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(num_heads, dropout)
        self.q_proj, self.k_proj, self.v_proj = (Linear(width, width) for _ in range(3))
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor, pos: Tensor, mask: Tensor, first: int | None = None) -> Tensor:
        """The first `first` rows of the attention's output (all by default), [N, first, d]."""
        placed = x + pos
        if first is not None and mask.shape[-2] > 1:
            mask = mask[..., :first, :]
        attended = self.attention(self.q_proj(placed[:, :first]), self.k_proj(placed), self.v_proj(x), mask)
        return self.out_proj(attended)


class EncoderLayer(nn.Module):
    """A post-norm transformer layer."""

    def __init__(self, width: int, num_heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads, dropout)
        self.feed_forward = FeedForward(width, feed_forward, dropout)
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.drop_path = DropPath(dropout)

    def forward(self, x: Tensor, pos: Tensor, mask: Tensor, first: int | None = None) -> Tensor:
        """`mask` bool [N, 1, 1 or S, S], True where attention is allowed. Gives the first `first` rows, or all."""
        x = self.norm1(self.drop_path(x[:, :first], lambda *kept: self.attention(*kept, first), x, pos, mask))
        return self.norm2(self.drop_path(x, self.feed_forward, x))


class Encoder(nn.Module):
    """Encoder layers without a final norm."""

    def __init__(self, num_layers: int, width: int, num_heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, num_heads, feed_forward, dropout) for _ in range(num_layers))

    def forward(self, x: Tensor, pos: Tensor, mask: Tensor, first: int | None = None) -> Tensor:
        """As `EncoderLayer`; only the last layer leaves rows out, since the others feed the keys of the next."""
        for layer in self.layers[:-1]:
            x = layer(x, pos, mask)
        return self.layers[-1](x, pos, mask, first)


class Projection(nn.Module):
    """Blocks of LayerNorm, dropout, Linear, with a ReLU behind each but the last."""

    def __init__(self, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm(width) for width in widths[:-1])
        self.linears = nn.ModuleList(Linear(i, o) for i, o in pairwise(widths))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        for i, (norm, linear) in enumerate(zip(self.norms, self.linears, strict=True)):
            x = linear(self.dropout(norm(F.relu(x) if i else x)))
        return x


def key_mask(valid_NS: Tensor) -> Tensor:
    """Which keys may be attended to, bool [N, 1, 1, S], of a mask that is 1 where a key is there."""
    return valid_NS.bool()[:, None, None]
