"""Adaptive cross attention from clips to words, with dummy tokens that absorb what no word explains (CG-DETR, 3.2).

Suffixes: N samples, L clips, K dummies, T words, S = K + T, d width, H attention heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tpo_head_temporal.dropout import Dropout, DropPath
from tpo_head_temporal.layers import FeedForward, LayerNorm, merge_heads, split_heads
from tpo_plugin import Linear


def cross_mask(clip_mask: Tensor, key_mask: Tensor, num_heads: int, reference: bool) -> Tensor:
    """Which keys each clip may attend to, bool [N, 1 or H, 1 or L, S]: those that are there.

    `reference` adds the public code's defect: of the pairs (padded clip, padded key), which are forbidden besides, row
    r = n * H + h of the flattened (sample, head) axis gets those of sample r mod N, since its map is tiled head-major.
    So a sample may lose words that lie behind another sample's text.
    """
    allowed = key_mask.bool()[:, None, None]
    if not reference:
        return allowed
    num = len(clip_mask)
    padded = ~clip_mask.bool()[:, :, None] & ~key_mask.bool()[:, None]  # [N, L, S]
    rows = torch.arange(num * num_heads, device=clip_mask.device) % max(num, 1)
    return allowed & ~padded[rows].unflatten(0, (num, num_heads))


class CrossLayer(nn.Module):
    """One layer: attention without query, key or value projections, then a feed-forward that skips a norm."""

    def __init__(self, width: int, num_heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.out_proj = Linear(width, width)
        self.feed_forward = FeedForward(width, feed_forward, dropout)
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.dropout, self.drop_path = Dropout(dropout), DropPath(dropout)

    def forward(
        self, video: Tensor, pos: Tensor, keys_NHSd: Tensor, words_NHTd: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The clips [N, L, d] and their attention to dummies and words, the mean over heads, [N, L, S].

        Dummy columns take part in the softmax and contribute no value.
        """
        query = split_heads(video + pos, self.num_heads)
        scores = (query * query.shape[-1] ** -0.5) @ keys_NHSd.transpose(-1, -2)
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        on_words = self.dropout(weights)[..., -words_NHTd.shape[-2] :]
        return self.update(video, merge_heads(on_words @ words_NHTd)), weights.mean(1)

    def update(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer. As in the public code the feed-forward reads LN1(x) and is added to x itself."""
        x = self.drop_path(x, self.out_proj, attended)
        return self.norm2(self.drop_path(x, lambda kept: self.feed_forward(self.norm1(kept)), x))


class TextToVideo(nn.Module):
    """The layers, over words and dummies that stay the same."""

    def __init__(self, num_layers: int, width: int, num_heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.layers = nn.ModuleList(CrossLayer(width, num_heads, feed_forward, dropout) for _ in range(num_layers))

    def forward(
        self, video: Tensor, pos: Tensor, keys_NSd: Tensor, words: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Clips that have seen the words, [N, L, d], and the attention map, the mean over layers, [N, L, S]."""
        keys, values = split_heads(keys_NSd, self.num_heads), split_heads(words, self.num_heads)
        maps = []
        for layer in self.layers:
            video, weights = layer(video, pos, keys, values, mask)
            maps.append(weights)
        return video, torch.stack(maps).mean(0)

    def without_keys(self, token_Nd: Tensor) -> Tensor:
        """The layers on a token with no key at all, so that its attention's output is zero."""
        for layer in self.layers:
            token_Nd = layer.update(token_Nd, torch.zeros_like(token_Nd))
        return token_Nd
