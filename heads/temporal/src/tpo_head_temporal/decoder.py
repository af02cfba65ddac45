"""Decoder with conditional spatial queries and anchors of two numbers (DAB-DETR, in one dimension).

Suffixes: N samples, L clips, Q queries, d width. Spans and anchors are (centre, width) in 0 to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tpo_head_temporal.dropout import DropPath
from tpo_head_temporal.layers import MLP, Attention, FeedForward, LayerNorm, Tokens, key_mask, split_heads
from tpo_head_temporal.positions import sine_code
from tpo_plugin import Linear


def inverse_sigmoid(y: Tensor, eps: float = 1e-3) -> Tensor:
    """log(y / (1 - y)), both bounded below by `eps`, as the public code has it."""
    y = y.clamp(0, 1)
    return (y.clamp(min=eps) / (1 - y).clamp(min=eps)).log()


class DecoderLayer(nn.Module):
    """Self attention of the queries, cross attention to the clips, feed-forward; post-norm."""

    def __init__(self, width: int, num_heads: int, feed_forward: int, dropout: float, is_first: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.self_attention, self.cross_attention = Attention(num_heads, dropout), Attention(num_heads, dropout)
        self.self_q_content, self.self_q_pos, self.self_k_content, self.self_k_pos, self.self_v, self.self_out = (
            Linear(width, width) for _ in range(6)
        )
        (
            self.cross_q_content,
            self.cross_q_sine,
            self.cross_k_content,
            self.cross_k_pos,
            self.cross_v,
            self.cross_out,
        ) = (Linear(width, width) for _ in range(6))
        self.cross_q_pos = Linear(width, width) if is_first else None
        self.feed_forward = FeedForward(width, feed_forward, dropout)
        self.norm1, self.norm2, self.norm3 = LayerNorm(width), LayerNorm(width), LayerNorm(width)
        self.drop_path = DropPath(dropout)

    def forward(self, x: Tensor, query_pos: Tensor, sine: Tensor, memory: Tensor, pos: Tensor, mask: Tensor) -> Tensor:
        """`x`, `query_pos`, `sine` [N, Q, d]; `memory`, `pos` [N, L, d]; `mask` [N, 1, 1, L]."""
        x = self.norm1(self.drop_path(x, self._among_queries, x, query_pos))
        x = self.norm2(self.drop_path(x, self._to_clips, x, query_pos, sine, memory, pos, mask))
        return self.norm3(self.drop_path(x, self.feed_forward, x))

    def _among_queries(self, x: Tensor, query_pos: Tensor) -> Tensor:
        attended = self.self_attention(
            self.self_q_content(x) + self.self_q_pos(query_pos),
            self.self_k_content(x) + self.self_k_pos(query_pos),
            self.self_v(x),
            None,
        )
        return self.self_out(attended)

    def _to_clips(
        self, x: Tensor, query_pos: Tensor, sine: Tensor, memory: Tensor, pos: Tensor, mask: Tensor
    ) -> Tensor:
        query, key, key_pos = self.cross_q_content(x), self.cross_k_content(memory), self.cross_k_pos(pos)
        if self.cross_q_pos is not None:
            query, key = query + self.cross_q_pos(query_pos), key + key_pos
        attended = self.cross_attention(
            self._beside(query, self.cross_q_sine(sine)),
            self._beside(key, key_pos),
            self.cross_v(memory),
            mask,
        )
        return self.cross_out(attended)

    def _beside(self, content: Tensor, place: Tensor) -> Tensor:
        """Each head's slice of both, one behind the other: [N, S, 2 d]."""
        parts = (split_heads(x, self.num_heads) for x in (content, place))
        return torch.cat(tuple(parts), -1).transpose(1, 2).flatten(-2)


class Decoder(nn.Module):
    """Queries that look for moments, each layer refining the anchors of the one before."""

    def __init__(
        self, num_layers: int, num_queries: int, width: int, num_heads: int, feed_forward: int, dropout: float
    ) -> None:
        super().__init__()
        self.width = width
        self.anchors = Tokens(num_queries, 2)
        self.layers = nn.ModuleList(
            DecoderLayer(width, num_heads, feed_forward, dropout, is_first=not i) for i in range(num_layers)
        )
        self.norm = LayerNorm(width)
        self.query_pos = MLP([width] * 3)
        self.width_scale = MLP([width, width, 1])
        self.class_head = Linear(width, 2)
        self.span_head = MLP([width, width, width, 2])
        if num_layers > 1:
            self.query_scale = MLP([width] * 3)
            self.anchor_update = MLP([width, width, width, 2])
            nn.init.zeros_(self.anchor_update.layers[-1].weight)
            nn.init.zeros_(self.anchor_update.layers[-1].bias)

    def forward(self, memory: Tensor, pos: Tensor, clip_mask: Tensor) -> dict[str, Tensor]:
        """Of every layer `logits` [N, layers, Q, 2] (0 foreground, 1 background) and `spans_cw` of that shape.

        The next layer starts from the updated anchor without gradient, the span of a layer from that with gradient.
        """
        mask = key_mask(clip_mask)
        anchor = reference = self.anchors().sigmoid().expand(len(memory), -1, -1)
        x = torch.zeros(*anchor.shape[:2], self.width, device=memory.device)
        states, references = [], []
        for i, layer in enumerate(self.layers):
            sine = torch.cat([sine_code(part, self.width // 2) for part in anchor.unbind(-1)], -1)
            query_pos = self.query_pos(sine)
            if i:
                sine = sine * self.query_scale(x)
            sine = sine * (self.width_scale(x).sigmoid() / anchor[..., 1:])
            x = layer(x, query_pos, sine, memory, pos, mask)
            states.append(self.norm(x))
            references.append(reference)
            if i + 1 < len(self.layers):
                reference = (self.anchor_update(x) + inverse_sigmoid(anchor)).sigmoid()
                anchor = reference.detach()
        state, reference = torch.stack(states, 1), torch.stack(references, 1)
        return {
            "logits": self.class_head(state),
            "spans_cw": (self.span_head(state) + inverse_sigmoid(reference)).sigmoid(),
        }
