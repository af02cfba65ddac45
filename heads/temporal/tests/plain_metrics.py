"""QVHighlights' metrics once more, plainly: loops over queries, windows and clips. What the fast ones must equal."""

from __future__ import annotations

from typing import Any

import numpy as np

SPLITS = {"full": None, "long": (30, 150), "middle": (10, 30), "short": (0, 10)}


def evaluate(predictions: list[dict[str, Any]], truth: list[dict[str, Any]]) -> dict[str, Any]:
    """As `tpo_head_temporal.qvhighlights.evaluate`, without `brief`."""
    by_query = {line["qid"]: line for line in truth}
    result: dict[str, Any] = {}
    if "pred_saliency_scores" in predictions[0]:
        for name, least in (("Fair", 2), ("Good", 3), ("VeryGood", 4)):
            result[f"HL-min-{name}"] = highlights(predictions, by_query, least)
    if "pred_relevant_windows" in predictions[0]:
        for name, limits in SPLITS.items():
            kept = []
            for line in predictions:
                windows = by_query[line["qid"]]["relevant_windows"]
                if limits is not None:
                    windows = [w for w in windows if limits[0] < w[1] - w[0] <= limits[1]]
                if windows:
                    kept.append((line["pred_relevant_windows"], windows))
            result[name] = moments(kept)
    return result


def moments(pairs: list[tuple[list[Any], list[Any]]]) -> dict[str, Any]:
    thresholds = [float(f"{0.3 + 0.05 * i:.2f}") for i in range(14)]
    ious = [best(predicted[0], windows) if predicted else 0.0 for predicted, windows in pairs]
    recall = {str(t): percent(sum(iou >= t for iou in ious) / len(ious)) if ious else 0.0 for t in thresholds}
    counted = [(predicted[:10], windows) for predicted, windows in pairs if predicted]
    precision = {}
    for t in thresholds[4:]:
        each = [detection_ap(predicted, windows, t) for predicted, windows in counted]
        precision[str(t)] = sum(each) / len(each) if each else 0.0
    precision["average"] = sum(precision.values()) / len(precision)
    return {
        "MR-mIoU": percent(sum(ious) / len(ious)) if ious else 0.0,
        "MR-mAP": {t: percent(value) for t, value in precision.items()},
        "MR-R1": recall,
    }


def iou(a: list[float], b: list[float]) -> float:
    both = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - both
    return both / union if union > 0 else 0.0


def best(window: list[float], windows: list[list[float]]) -> float:
    true = max(windows, key=lambda other: iou(window, other))
    both = max(0.0, min(window[1], true[1]) - max(window[0], true[0]))
    hull = max(window[1], true[1]) - min(window[0], true[0])
    return both / hull if hull > 0 else 0.0


def detection_ap(predicted: list[list[float]], windows: list[list[float]], threshold: float) -> float:
    taken: set[int] = set()
    hits = []
    for window in sorted(predicted, key=lambda w: -w[2]):
        overlaps = [iou(window, other) for other in windows]
        hit = False
        for j in sorted(range(len(windows)), key=lambda j: (overlaps[j], j), reverse=True):
            if overlaps[j] < threshold:
                break
            if j not in taken:
                taken.add(j)
                hit = True
                break
        hits.append(hit)
    points = []
    for n in range(1, len(hits) + 1):
        points.append((sum(hits[:n]) / len(windows), sum(hits[:n]) / n))
    area, before = 0.0, 0.0
    for i, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[i:])
        before = recall
    return area


def highlights(predictions: list[dict[str, Any]], truth: dict[Any, dict[str, Any]], least: int) -> dict[str, float]:
    precisions, hits = [], []
    for line in predictions:
        true = truth[line["qid"]]
        clips = int(true["duration"] / 2)
        rated = np.zeros((clips, 3))
        rated[true["relevant_clip_ids"]] = true["saliency_scores"]
        scores = list(line["pred_saliency_scores"])
        first = scores.index(max(scores))
        hits.append(first < clips and bool((rated[first] >= least).any()))
        scores = (scores + [0.0] * clips)[:clips]
        precisions += [clip_ap(scores, rated[:, a] >= least) for a in range(3)]
    return {"HL-mAP": percent(sum(precisions) / len(precisions)), "HL-Hit1": percent(sum(hits) / len(hits))}


def clip_ap(scores: list[float], positive: np.ndarray) -> float:
    if not positive.any():
        return 0.0
    curve = []  # (number of true positives, precision) at each distinct score, from the highest
    for level in sorted(set(scores), reverse=True):
        chosen = np.array(scores) >= level
        curve.append((int(positive[chosen].sum()), positive[chosen].mean()))
    found = []
    for i, (count, _) in enumerate(curve):
        if count > (curve[i - 1][0] if i else 0):
            found.append(max(p for _, p in curve[i:]))
    return sum(found) / len(found)


def percent(value: float) -> float:
    return float(f"{100 * value:.2f}")
