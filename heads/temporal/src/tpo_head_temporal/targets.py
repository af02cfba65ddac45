"""From what a record says to what the losses compare: spans as fractions, a saliency for each clip.

Suffixes: N task tokens, L clips, M moments of a sample at the most, K values of a sample's saliency at the most.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pad_sequence

from tpo_head_temporal.losses import Targets
from tpo_head_temporal.positions import to_centre_width


def make_targets(outputs: dict[str, Tensor], targets: dict[str, Any]) -> Targets:
    """Of `spans_s`, N tensors [M_n, 2], and optionally `saliency`, N tensors [K_n] (empty where there is none) with
    `clip_s` [N], NaN or absent where the values cover the video evenly.
    """
    clips_s, mask, duration_s = outputs["clips_s"], outputs["frame_mask"], outputs["duration_s"]
    device = mask.device
    spans_s, there = _padded(targets["spans_s"], device)
    length = duration_s.clamp(min=1e-6)[:, None, None]
    fractions = (spans_s / length).clamp(0, 1)
    # Padding is a valid span, so that what is computed of it is finite.
    fractions = torch.where(there[..., None].bool(), fractions, fractions.new_tensor([0.0, 1.0]))
    inside = _inside(clips_s, mask, spans_s, there)
    saliency, annotated = inside, torch.zeros_like(duration_s, dtype=torch.bool)
    if targets.get("saliency") is not None:
        given = _resampled(targets, outputs)
        annotated = (given > 0).any(-1)
        saliency = torch.where(annotated[:, None], given, inside)
    return Targets(to_centre_width(fractions), there, saliency, _pairs(saliency, annotated, mask), _real(outputs))


def mix_videos(outputs: dict[str, Tensor], targets: Targets) -> tuple[dict[str, Tensor], Targets]:
    """The same samples, neighbours of different videos as far as there are: a question of each video, a second, ...

    Questions about one video stand together in a batch of records; in that order few have a negative.
    """
    video = outputs["video_group"]
    order = (video[:, None] == video).tril(-1).sum(1).argsort(stable=True)
    mixed = {name: value[order] for name, value in outputs.items()}
    parts = {name: getattr(targets, name)[order] for name in ("spans_cw", "span_mask", "saliency", "pairs")}
    return mixed, Targets(**parts, real=_real(mixed))


def _real(outputs: dict[str, Tensor]) -> Tensor:
    """A question about another video is a negative, but not where it has the same words."""
    video, question = outputs["video_group"], outputs["question_group"]
    return (video != video.roll(-1)) & (question != question.roll(-1))


def _padded(values: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """One tensor [N, longest, ...] and its mask [N, longest]."""
    mask = pad_sequence([torch.ones(len(value)) for value in values], batch_first=True)
    return pad_sequence([value.float() for value in values], batch_first=True).to(device), mask.to(device)


def _inside(clips_s: Tensor, mask: Tensor, spans_s: Tensor, there: Tensor) -> Tensor:
    """1 for clips whose middle lies in a span, [N, L]; of each span at least for the clip that is nearest to it."""
    middle = clips_s[..., 1:].mean(-1)[:, None]  # [N, 1, L]
    within = (middle >= spans_s[..., :1]) & (middle <= spans_s[..., 1:])
    distance = (middle - spans_s.mean(-1, keepdim=True)).abs().masked_fill(mask[:, None] == 0, float("inf"))
    nearest = one_hot(distance.argmin(-1), mask.shape[1]).bool()
    return ((within | nearest) & there[..., None].bool()).any(1).float() * mask


def _resampled(targets: dict[str, Any], outputs: dict[str, Tensor]) -> Tensor:
    """The value of each clip's middle, [N, L]; 0 where there is none."""
    mask, duration_s = outputs["frame_mask"], outputs["duration_s"]
    values, there = _padded(targets["saliency"], mask.device)
    if not values.shape[1]:
        return torch.zeros_like(mask)
    count = there.sum(-1)
    step = duration_s / count.clamp(min=1)
    if targets.get("clip_s") is not None:
        given = torch.as_tensor(targets["clip_s"], device=mask.device, dtype=torch.float32)
        step = torch.where(given.isnan(), step, given)
    place = (outputs["clips_s"][..., 1:].mean(-1) / step.clamp(min=1e-6)[:, None]).long()
    known = (place < count[:, None]) & (mask > 0)
    return torch.where(known, values.gather(1, place.clamp(0, values.shape[1] - 1)), 0.0)


def _pairs(saliency: Tensor, annotated: Tensor, mask: Tensor) -> Tensor:
    """Weights [N, L, L] of pairs (more salient, less salient), two in sum for each sample.

    The public code draws them: with annotated saliency the best and the worst relevant clip, and one relevant and one
    other clip at random; without it, two of the latter. Here the random ones are all pairs with equal weight, which is
    their mean. Where every clip is relevant the second pair is the first once more.
    """
    relevant = ((saliency > 0) & (mask > 0)).float()
    other = mask - relevant
    drawn = relevant[:, :, None] * other[:, None]
    drawn = drawn / drawn.sum((1, 2), keepdim=True).clamp(min=1)
    best = one_hot(saliency.masked_fill(relevant == 0, -1).argmax(-1), mask.shape[1])
    worst = one_hot(saliency.masked_fill(relevant == 0, float("inf")).argmin(-1), mask.shape[1])
    ordered = (best[:, :, None] * worst[:, None]).float()
    has_other = other.sum(-1)[:, None, None] > 0
    return torch.where(annotated[:, None, None], ordered + torch.where(has_other, drawn, ordered), 2 * drawn)
