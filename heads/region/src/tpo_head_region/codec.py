"""Boxes of records. N = task tokens in the batch, M = boxes that users give in it, M_n those of a set. No torch until
tensors are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tpo_plugin as tpo
from tpo_head_region.config import RegionSetConfig
from tpo_plugin.checks import check_box, check_seconds, is_list

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class _BoxesCodec(tpo.TaskCodec):
    """What is common to both: tasks that are a list of boxes, and may be at a second of a video."""

    fields = ("boxes",)

    def check_task(self, task: dict[str, Any]) -> None:
        for index, box in enumerate(task["boxes"]):
            check_box(f"boxes[{index}]", box)
        if task.get("time") is not None:
            check_seconds("time", task["time"])

    def boxes_of(self, task: dict[str, Any]) -> list[Any]:
        return list(task["boxes"])

    def draw_tasks(self, tasks: list[dict[str, Any]], given: list[dict[str, Any]], sample: tpo.Sample) -> list[Image]:
        """A picture for each time, with the boxes of answers in orange over those that the user gives in blue."""
        from tpo_head_region.drawing import PREDICTED, TRUE, draw_boxes

        coloured = [(task, TRUE) for task in given] + [(task, PREDICTED) for task in tasks]
        pictures = []
        for time in dict.fromkeys(task.get("time") for task, _ in coloured):
            boxes = [(box, c) for task, c in coloured if task.get("time") == time for box in task["boxes"]]
            pictures.append(draw_boxes(sample.picture(time), boxes, bold=True))
        return pictures


class RegionCodec(_BoxesCodec):
    """`boxes`: [[x1, y1, x2, y2], ...] in 0 to 1 of the image, one for each task token (or input token)."""

    def check_task(self, task: dict[str, Any]) -> None:
        boxes = task.get("boxes")
        if not is_list(boxes) or not boxes:
            raise ValueError(f"boxes is {boxes!r}; expected a list of at least one box [x1, y1, x2, y2]")
        super().check_task(task)

    def num_tokens(self, task: dict[str, Any]) -> int:
        """One token for each box."""
        return len(task["boxes"])

    def collate_targets(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        """`boxes_xyxy` [N, 4], float32."""
        return {"boxes_xyxy": _boxes(tasks)}

    def collate_inputs(self, tasks: list[dict[str, Any]], given: list[dict[str, Any]]) -> dict[str, Any]:
        """`boxes_xyxy` [M, 4], float32: the boxes that the users give."""
        return {"boxes_xyxy": _boxes(given)}


class RegionSetCodec(_BoxesCodec):
    """`boxes`: [[x1, y1, x2, y2], ...] in 0 to 1 of the image, all for one task token; an empty list where there are
    none."""

    config: RegionSetConfig

    def check_task(self, task: dict[str, Any]) -> None:
        boxes: Any = task.get("boxes")
        if not is_list(boxes):
            raise ValueError(f"boxes is {boxes!r}; expected a list of boxes [x1, y1, x2, y2], or an empty list")
        if len(boxes) > self.config.max_boxes:
            raise ValueError(f"boxes has {len(boxes)} boxes; expected at most max_boxes={self.config.max_boxes}")
        super().check_task(task)

    def collate_targets(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        """`boxes_xyxy`, N tensors [M_n, 4], float32."""
        return {"boxes_xyxy": [_boxes([task]) for task in tasks]}


def _boxes(tasks: list[dict[str, Any]]) -> Tensor:
    import torch

    return torch.tensor([box for task in tasks for box in task["boxes"]], dtype=torch.float32).reshape(-1, 4)
