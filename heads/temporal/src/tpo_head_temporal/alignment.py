"""Moment and sentence tokens, which training pulls towards each other. They need to know which clips are relevant.

Suffixes: N samples, L clips, K dummies, T words, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tpo_head_temporal.layers import Encoder, Tokens


class MomentTokens(nn.Module):
    """An encoder over the clips with one token for the moments and one for the rest.

    The public code runs it twice, with the relevant clips as keys and with the others, and then takes of each run what
    belongs to it. A clip and a token here attend to their own side only, which gives those rows in one run.
    """

    def __init__(self, num_layers: int, width: int, num_heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.token, self.position = Tokens(1, width), Tokens(1, width)
        self.encoder = Encoder(num_layers, width, num_heads, feed_forward, dropout)

    def forward(
        self, video: Tensor, pos: Tensor, clip_mask: Tensor, moment_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The moment token and the non-moment token [N, d], and the clips [N, L, d], each as its own side sees it."""
        num = len(video)
        x = torch.cat((self.token().expand(num, 2, -1), video), 1)
        pos = torch.cat((self.position().expand(num, 2, -1), pos), 1)
        first = moment_mask.new_tensor([True, False], dtype=torch.bool).expand(num, 2)
        side = torch.cat((first, moment_mask.bool()), 1)
        there = torch.cat((torch.ones_like(first), clip_mask.bool()), 1)
        mask = (side[:, :, None] == side[:, None]) & there[:, None]
        x = self.encoder(x, pos, mask[:, None])
        return x[:, 0], x[:, 1], x[:, 2:]


class SentenceTokens(nn.Module):
    """An encoder over words, or over dummies, with a token that gathers them."""

    def __init__(self, num_layers: int, width: int, num_heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.token, self.position = Tokens(1, width), Tokens(1, width)
        self.encoder = Encoder(num_layers, width, num_heads, feed_forward, dropout)

    def forward(self, words: Tensor, pos: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The token [N, d], and what became of the words [N, T, d], without gradient: only a fixed target uses it."""
        num = len(words)
        x = torch.cat((self.token().expand(num, 1, -1), words), 1)
        pos = torch.cat((self.position().expand(num, 1, -1), pos), 1)
        there = torch.cat((torch.ones_like(mask[:, :1]), mask), 1).bool()[:, None, None]
        token = self.encoder(x, pos, there, first=1)[:, 0]
        with torch.no_grad():
            return token, self.encoder(x, pos, there)[:, 1:]


class Alignment(nn.Module):
    """What the losses compare of moments and sentences."""

    def __init__(
        self, moment_layers: int, sentence_layers: int, width: int, num_heads: int, feed_forward: int, dropout: float
    ) -> None:
        super().__init__()
        self.moment = MomentTokens(moment_layers, width, num_heads, feed_forward, dropout)
        # Eight heads and dropout 0.1 whatever the configuration, as in the public code.
        self.sentence = SentenceTokens(sentence_layers, width, 8, feed_forward, 0.1 if dropout else 0.0)

    def forward(self, outputs: dict[str, Tensor], moment_mask: Tensor) -> dict[str, Tensor]:
        """From the network's outputs and the relevant clips [N, L]: `moment`, `rest`, `sentence`, `dummy_sentence`
        [N, d], `clips` [N, L, d] and `similarity` [N, L, K + T], of the relevant clips to dummies and words.
        """
        moment, rest, clips = self.moment(outputs["video"], outputs["video_pos"], outputs["frame_mask"], moment_mask)
        words, dummies, dummy_pos = outputs["words"], outputs["dummies"], outputs["dummy_pos"]
        sentence, word_memory = self.sentence(words, torch.zeros_like(words), outputs["word_mask"])
        dummy_sentence, dummy_memory = self.sentence(dummies, dummy_pos, torch.ones_like(dummies[..., 0]))
        with torch.no_grad():
            similarity = clips @ torch.cat((dummy_memory, word_memory), 1).transpose(1, 2)
        return {
            "moment": moment,
            "rest": rest,
            "clips": clips,
            "sentence": sentence,
            "dummy_sentence": dummy_sentence,
            "similarity": similarity,
        }
