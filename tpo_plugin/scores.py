"""How much scores are worth, for heads whose predictions have a score and a quality: average precision, calibration.

Suffixes: P predictions.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["THRESHOLDS", "average_precision", "calibration_error", "overlap_metrics", "reliability"]

THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))
"""Of the overlap, 0.5 to 0.95: those that COCO averages over."""
_RECALLS = 101


def average_precision(scores_P: Tensor, hits_P: Tensor, num_targets: int) -> float:
    """Area under the curve of precision over recall, 0 to 1, as COCO takes it: at 101 recalls, from 0 to 1.

    The precision at a recall is the best one at that or any higher recall.

    Args:
        scores_P: Confidences; of equal ones the order given counts.
        hits_P: Whether a prediction is right. A target counts at most once.
        num_targets: How many there are to find; with none the result is NaN.
    """
    if not num_targets:
        return float("nan")
    hits = hits_P[scores_P.argsort(descending=True, stable=True)].double()
    found = hits.cumsum(0)
    precision = found / torch.arange(1, len(hits) + 1, device=hits.device)
    best = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
    wanted = torch.linspace(0, 1, _RECALLS, dtype=torch.float64, device=hits.device)
    at = torch.searchsorted(found / num_targets, wanted - 1e-12)
    return float(torch.cat((best, best.new_zeros(1)))[at].mean())


def reliability(scores_P: Tensor, qualities_P: Tensor, num_bins: int = 10) -> list[tuple[float, float, int]]:
    """(mean score, mean quality, number) of the predictions in each of `num_bins` equal bins of scores, lowest first.

    Both are in 0 to 1; a score is calibrated where it is the quality to be expected. Empty bins are left out.
    """
    scores, qualities = scores_P.double(), qualities_P.double()
    bins = (scores * num_bins).long().clamp(0, num_bins - 1)
    groups = [bins == i for i in range(num_bins)]
    return [(float(scores[g].mean()), float(qualities[g].mean()), int(g.sum())) for g in groups if g.any()]


def calibration_error(scores_P: Tensor, qualities_P: Tensor, num_bins: int = 10) -> float:
    """Expected calibration error, 0 to 1: |mean score - mean quality| of each bin, averaged over the predictions.

    After Guo et al., ICML 2017. The quality is what the score stands for: 0 or 1 for right or wrong, an overlap for a
    score that foretells it.
    """
    bins = reliability(scores_P, qualities_P, num_bins)
    total = sum(number for *_, number in bins)
    return sum(number * abs(score - quality) for score, quality, number in bins) / total if total else float("nan")


def overlap_metrics(scores_P: Tensor, overlaps_P: Tensor, num_targets: int) -> dict[str, float]:
    """`ap@0.5`, `ap` (the mean over `THRESHOLDS`) and `calibration_error` of predictions that overlap their targets."""
    precisions = [average_precision(scores_P, overlaps_P >= threshold, num_targets) for threshold in THRESHOLDS]
    return {
        "ap@0.5": precisions[0],
        "ap": sum(precisions) / len(precisions),
        "calibration_error": calibration_error(scores_P, overlaps_P),
    }
