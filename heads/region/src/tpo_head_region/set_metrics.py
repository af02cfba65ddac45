"""What evaluation reports of sets of boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import tpo_plugin as tpo
from tpo_head_region.benchmarks import set_ap, sets

_TRIED, _ON = 8, 256
"""How many true sets `constant` tries, and on how many it compares them."""


class RegionSetMetrics(tpo.HeadMetrics):
    """`recall`, `precision`, `F1`, and gRefCOCO's `F1_score`, `T-acc` and `N-acc`, as `benchmarks.sets` has them, of
    the boxes that `postprocess` keeps; `ap@0.5` and `ap` of all queries' boxes by their scores.

    A number that there is nothing to take of is left out. Of a missed target nothing was found.
    """

    def __init__(self, head: tpo.TaskHead) -> None:
        super().__init__(head)
        self._kept: list[list[list[float]]] = []
        self._boxes: list[list[list[float]]] = []
        """Of all queries."""
        self._scores: list[list[float]] = []
        """Of them."""
        self._truth: list[list[list[float]]] = []

    @torch.no_grad()
    def update(self, outputs: dict[str, Tensor], targets: dict[str, Any]) -> None:
        self._kept += [value["boxes_xyxy"].tolist() for value in self.head.postprocess(outputs)]
        self._boxes += outputs["boxes_xyxy"].clamp(0, 1).tolist()
        self._scores += outputs["object"].sigmoid().tolist()
        self._truth += [boxes.tolist() for boxes in targets["boxes_xyxy"]]

    def missed(self, targets: dict[str, Any]) -> bool:
        self._truth += [boxes.tolist() for boxes in targets["boxes_xyxy"]]
        for found in (self._kept, self._boxes, self._scores):
            found += [[]] * len(targets["boxes_xyxy"])
        return True

    def quality(self) -> float | None:
        """F1; 1 where there is nothing, and nothing was found."""
        return self.compute().get("F1", 1.0) if self._truth else None

    def compute(self) -> dict[str, float]:
        if not self._truth:
            return {}
        found = sets(self._kept, self._truth)
        del found["samples"]
        return found | (set_ap(self._boxes, self._truth, self._scores) if any(self._truth) else {})

    def constant(self) -> dict[str, float]:
        """`F1` of that set, of a few true ones that are tried on at most 256, with the highest."""
        targeted = [boxes for boxes in self._truth if boxes]
        if not targeted:
            return {}
        some = self._truth[:: -(-len(self._truth) // _ON)]
        tried = targeted[:: -(-len(targeted) // _TRIED)]
        return {"F1": max(sets([boxes] * len(some), some)["F1"] for boxes in tried)}
