"""Every loss of CG-DETR, as the public code reduces it. No function loops over the samples.

Each gives a mean over the batch; `TemporalHead.loss` multiplies it by N / num_targets. With `reference` they are the
public code's means; without it each is the mean over samples of the sample's own mean, so that neither padding nor the
other samples' moments matter, and the oddities that its functions name are gone. Suffixes: N samples, L clips, Q
queries, M moments of a sample at the most, K dummies, T words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tpo_head_temporal.matcher import giou, match
from tpo_head_temporal.positions import to_start_end
from tpo_head_temporal.saliency import overlap

LEVELS = 11
"""Saliency levels that are ranked, 1 to 11; the public code divides by one more."""


@dataclass
class Targets:
    """What is true of a batch."""

    spans_cw: Tensor
    """[N, M, 2], (centre, width) in 0 to 1 of the video."""
    span_mask: Tensor
    """[N, M], 1 where there is a moment."""
    saliency: Tensor
    """[N, L], 0 (not relevant) to 12."""
    pairs: Tensor
    """[N, L, L]: how much it counts that clip i is more salient than clip j; two pairs of weight 1 a sample, or as
    much weight over more of them."""
    real: Tensor
    """bool [N]: whether the next sample's query is about another video than this sample's."""


def mean(values: Tensor, mask: Tensor, reference: bool) -> Tensor:
    """Mean of values [N, ...] where `mask` is 1, 0 where it is nowhere: of all at once, or of each sample's mean."""
    mask = mask.to(values.dtype)
    if reference or values.dim() == 1:
        return (values * mask).sum() / (mask.sum().clamp(min=1) if reference else len(mask))
    return ((values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)).mean()


# -- spans -------------------------------------------------------------------------------------------------------------


def span_losses(
    logits: Tensor, spans_cw: Tensor, targets: Targets, *, costs: dict[str, float], background: float, reference: bool
) -> dict[str, Tensor]:
    """Of all decoder layers, [N, layers, Q, 2]: `loss_span`, `loss_giou`, `loss_label` and `class_error` of the last
    one, and with the suffix `_i` of layer i before it. `costs` are the matcher's.
    """
    num_layers = logits.shape[1]
    true = targets.spans_cw[:, None].expand(-1, num_layers, -1, -1)
    there = targets.span_mask[:, None].expand(-1, num_layers, -1)
    query = match(logits, spans_cw, true, there, **costs)
    matched = spans_cw.gather(2, query[..., None].expand(-1, -1, -1, 2))
    distance = (matched - true).abs().mean(-1)
    inverse = 1 - giou(to_start_end(matched), to_start_end(true))
    is_moment = torch.zeros_like(logits[..., 0]).scatter_reduce(2, query, there, "amax")
    log_p = logits.log_softmax(-1)
    label = -is_moment * log_p[..., 0] - (1 - is_moment) * background * log_p[..., 1]
    right = (logits[..., 0] >= logits[..., 1]).to(logits.dtype)
    losses = {}
    for i in range(num_layers):
        suffix = "" if i == num_layers - 1 else f"_{i}"
        losses[f"loss_span{suffix}"] = mean(distance[:, i], there[:, i], reference)
        losses[f"loss_giou{suffix}"] = mean(inverse[:, i], there[:, i], reference)
        losses[f"loss_label{suffix}"] = label[:, i].mean()
        losses[f"class_error{suffix}"] = 100 * (1 - mean(right[:, i], is_moment[:, i], True))
    return losses


# -- saliency ----------------------------------------------------------------------------------------------------------


def margin_loss(scores: Tensor, pairs: Tensor, margin: float) -> Tensor:
    """Hinge on pairs of clips: the first shall score higher than the second by `margin`."""
    return (pairs * (margin + scores[:, None] - scores[:, :, None]).clamp(min=0)).sum((1, 2)).mean()


def rank_loss(scores: Tensor, saliency: Tensor, valid: Tensor) -> Tensor:
    """At each level the clips at or above it against all others of the row: [N], 0 for a row with no relevant clip."""
    z = (valid * scores - 1000 * (1 - valid)) / 0.5
    z = z - z.amax(-1, keepdim=True)
    log_p = z - (z.exp().sum(-1, keepdim=True) + 1e-6).log()
    levels = torch.arange(1, LEVELS + 1, device=scores.device)
    above = (saliency[..., None] >= levels).to(scores.dtype)
    weight = (above / (above.sum(1, keepdim=True) + 1e-6)).sum(-1)
    return -(weight * log_p * valid).sum(-1) / (LEVELS + 1)


def ranking(
    scores: Tensor, negative: Tensor, targets: Targets, valid: Tensor, reference: bool
) -> tuple[Tensor, Tensor]:
    """The rank loss over samples whose negative is real, together with that negative, and over the others alone."""
    both = torch.cat((scores, negative), 1)
    truth = torch.cat((targets.saliency, torch.zeros_like(targets.saliency)), 1)
    real = rank_loss(both, truth, valid.repeat(1, 2))
    false = rank_loss(scores, targets.saliency, valid)
    return mean(real, targets.real, reference), mean(false, ~targets.real, reference)


def saliency_terms(
    outputs: dict[str, Tensor], negatives: dict[str, Tensor], targets: Targets, *, margin: float, reference: bool
) -> dict[str, Tensor]:
    """The additive pieces of `loss_saliency`, of the scores and of the attention on words.

    Oddities of the public code: with exactly one sample whose negative is not real that sample's rank term vanishes;
    where there is a real negative the attention's term of the others is left out; `attn.bce` counts the padding.
    """
    valid, real = outputs["frame_mask"], targets.real
    scores, attention = outputs["saliency"], outputs["word_attention"]
    score_real, score_false = ranking(scores, negatives["saliency"], targets, valid, reference)
    attention_real, attention_false = ranking(attention, negatives["word_attention"], targets, valid, reference)
    if reference:
        none_real = ~real.any()
        score_false = score_false * (none_real | ((~real).sum() != 1))
        attention_false = attention_false * none_real
    # -log(1 - p): of a logit it is its softplus; a probability stays a rounding error below 1
    off_score = (F.softplus(negatives["saliency"]) * valid).sum(-1)
    below_one = (1 - negatives["word_attention"]).clamp(min=torch.finfo(scores.dtype).eps)
    off_attention = -(below_one.log() * valid).sum(-1)
    bce = F.binary_cross_entropy(attention, targets.saliency.clamp(max=1), reduction="none")
    return {
        "score.margin": margin_loss(scores, targets.pairs, margin),
        "score.rank_real": score_real,
        "score.rank_false": score_false,
        "score.neg_pair": mean(off_score, real, reference),
        "attn.margin": margin_loss(attention, targets.pairs, margin),
        "attn.rank_real": attention_real,
        "attn.rank_false": attention_false,
        "attn.neg_pair": mean(off_attention, real, reference),
        "attn.bce": bce.mean() if reference else mean(bce, valid, reference),
    }


# -- alignment ---------------------------------------------------------------------------------------------------------


def align_terms(
    aligned: dict[str, Tensor], moment_mask: Tensor, valid: Tensor, *, reference: bool
) -> dict[str, Tensor]:
    """The pieces of `loss_ms_align`: moments against the batch's sentences and dummies, and clips against moments.

    Both contrasts compare a sample with its batch. As in the public code the dummies' target is the first column of
    another sample (column 1 in the first row). Its oddities: `frame_bce` is of a sigmoid, which saturates, where a
    wrong clip has no gradient, and its mean counts the padding.
    """
    num = len(valid)
    row = torch.arange(num, device=valid.device)
    moments = F.normalize(torch.cat((aligned["moment"], aligned["rest"])), dim=-1).unflatten(0, (2, num))

    def contrast(sentence: Tensor, column: Tensor) -> Tensor:
        table = (moments @ F.normalize(sentence, dim=-1).T).transpose(0, 1).flatten(1)  # [N, 2 N]
        return F.cross_entropy(table, column)

    logits = (aligned["clips"] @ aligned["moment"][..., None])[..., 0]
    if reference:
        frame_bce = (F.binary_cross_entropy(logits.sigmoid(), moment_mask, reduction="none") * valid).mean()
    else:
        bce = F.binary_cross_entropy_with_logits(logits, moment_mask, reduction="none")
        frame_bce = mean(bce, valid, reference)
    return {
        "sentence_ce": contrast(aligned["sentence"], row),
        "dummy_ce": contrast(aligned["dummy_sentence"], (row == 0).long()),
        "frame_bce": frame_bce,
    }


def distill_loss(similarity: Tensor, attention: Tensor, moment_mask: Tensor, *, reference: bool) -> Tensor:
    """Divergence of the relevant clips' attention from what their similarity to words and dummies asks for."""
    target = similarity.log_softmax(-1)
    divergence = (target.exp() * (target - (attention + 1e-6).log())).mean(-1)
    return mean(divergence, moment_mask, reference)


def criterion(
    outputs: dict[str, Tensor],
    negatives: dict[str, Tensor],
    aligned: dict[str, Tensor],
    targets: Targets,
    *,
    costs: dict[str, float],
    background: float,
    margin: float,
    attention_weight: float,
    reference: bool,
) -> dict[str, Tensor]:
    """Every loss by the public code's name, unweighted, each a mean over the batch; and `class_error`, in per cent.

    `outputs`, `negatives` and `aligned` are what the network's methods give, `costs` the matcher's. The terms "attn."
    of the saliency loss count `attention_weight` times.
    """
    valid = outputs["frame_mask"]
    moment_mask = (targets.saliency > 0).to(valid.dtype)
    saliency = saliency_terms(outputs, negatives, targets, margin=margin, reference=reference)
    align = align_terms(aligned, moment_mask, valid, reference=reference)
    orthogonal = overlap(outputs["dummies"]) + outputs["prompt_overlap"]
    return {
        **span_losses(
            outputs["logits"],
            outputs["spans_cw"],
            targets,
            costs=costs,
            background=background,
            reference=reference,
        ),
        "loss_saliency": torch.stack(
            [attention_weight * term if name.startswith("attn.") else term for name, term in saliency.items()]
        ).sum(),
        "loss_ms_align": torch.stack([*align.values()]).sum(),
        "loss_distill": distill_loss(aligned["similarity"], outputs["attention"], moment_mask, reference=reference),
        "loss_orthogonal_dummy": orthogonal.mean(),
    }
