"""The saliency token: what of the video the query is about, put in front of the clips.

Suffixes: N samples, L clips, P prompts, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpo_head_temporal.layers import Tokens
from tpo_plugin import Linear


class SaliencyToken(nn.Module):
    """A mixture of learned prompts, chosen by the clips that attend most to words, plus the video's mean."""

    def __init__(self, width: int, total_prompts: int, num_prompts: int) -> None:
        super().__init__()
        self.num_prompts = num_prompts
        self.prompts, self.position = Tokens(total_prompts, width), Tokens(1, width)

    def forward(self, video: Tensor, clip_mask: Tensor, word_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From the projected clips [N, L, d] and how much each attends to words [N, L]: the token [N, d], its position
        [N, 1, d], and by how much the prompts overlap, the same number for each sample, [N].
        """
        prompts = self.prompts()
        count = clip_mask.sum(1, keepdim=True).clamp(min=1)
        context = ((video * clip_mask[..., None]).sum(1) / count).detach()
        direction = F.normalize(video - context[:, None], dim=-1)
        similarity = (direction @ F.normalize(prompts, dim=-1).T).softmax(-1)  # [N, L, P]
        importance = word_weights.detach() * clip_mask
        importance = importance / importance.sum(1, keepdim=True).clamp(min=torch.finfo(importance.dtype).tiny)
        weights, chosen = (importance[:, None] @ similarity)[:, 0].topk(self.num_prompts)
        token = (weights[..., None] * prompts[chosen]).sum(1) + context
        position = self.position().expand(len(video), 1, -1)
        return token, position, overlap(prompts).expand(len(video))


class ClipProjection(nn.Linear):
    """The dot product of each projected clip with a vector of its sample.

    (W clip + b) . v = clip . (W^T v) + b . v: one projection a sample in place of one a clip.
    """

    def forward(self, clips_NLd: Tensor, vectors_Nd: Tensor) -> Tensor:
        """[N, L]"""
        weight, bias = self.weight.float(), self.bias.float()
        return (clips_NLd @ (vectors_Nd @ weight)[..., None])[..., 0] + (vectors_Nd @ bias)[:, None]


class SaliencyScore(nn.Module):
    """How well each clip fits the whole, a scaled dot product of two projections."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.clip_proj, self.whole_proj = ClipProjection(width, width), Linear(width, width)

    def forward(self, clips_NLd: Tensor, whole_Nd: Tensor) -> Tensor:
        """[N, L], unbounded; of padded clips too."""
        return self.clip_proj(clips_NLd, self.whole_proj(whole_Nd) / whole_Nd.shape[-1] ** 0.5)


def overlap(vectors: Tensor) -> Tensor:
    """Mean of |cos| over all pairs of vectors [..., P, d], the diagonal counted as 0: [...].

    As in the public code the gradient reaches one side of each product only.
    """
    unit = F.normalize(vectors, dim=-1)
    cosine = (unit @ unit.detach().transpose(-1, -2)).abs()
    others = 1 - torch.eye(cosine.shape[-1], device=cosine.device)
    return (cosine * others).mean((-2, -1))
