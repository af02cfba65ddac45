"""A small vision-language model in plain torch, of the kind that people write for themselves.

It knows no transformers: no config, no labels, targets that stand where they are predicted, and a loop for generation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE_ID, IGNORED = 1, -100
SIDE, PATCH, WIDTH, NUM_HEADS = 8, 4, 32, 4
NUM_PATCHES = (SIDE // PATCH) ** 2
"""Placeholders that stand for an image."""


class Block(nn.Module):
    """A transformer block; `mask` [B, 1, T, T] says which positions a position sees."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        parts = self.attention(self.before_attention(x)).unflatten(-1, (3, NUM_HEADS, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*parts, attn_mask=mask)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))


class Decoder(nn.Module):
    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self.token_embedding, self.place_embedding = nn.Embedding(num_rows, WIDTH), nn.Embedding(256, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, num_rows, bias=False)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        places = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        x = x + self.place_embedding(places)
        length = x.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=x.device)
        mask = causal & attention_mask.bool()[:, None, None] | itself
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


class NanoVLM(nn.Module):
    def __init__(self, num_rows: int, tied: bool = False) -> None:
        super().__init__()
        self.patches, self.encoder = nn.Conv2d(3, WIDTH, PATCH, PATCH), Block()
        self.projector = nn.Linear(WIDTH, WIDTH)
        self.decoder = Decoder(num_rows)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.2)
        if tied:
            self.decoder.head.weight = self.decoder.token_embedding.weight

    def forward(
        self,
        input_ids: Tensor,
        images: Tensor | None = None,
        attention_mask: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        x = self.decoder.token_embedding(input_ids)
        if images is not None:
            features = self.projector(self.encoder(self.patches(images).flatten(2).transpose(1, 2)))
            x = x.masked_scatter((input_ids == IMAGE_ID)[..., None], features.to(x.dtype))
        logits = self.decoder(x, torch.ones_like(input_ids) if attention_mask is None else attention_mask)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, images: Tensor | None = None, max_new_tokens: int = 8) -> Tensor:
        """Greedy."""
        for _ in range(max_new_tokens):
            logits, _ = self(input_ids, images)
            input_ids = torch.cat([input_ids, logits[:, -1:].argmax(-1)], 1)
        return input_ids
