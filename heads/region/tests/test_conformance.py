"""The region head on the conformance kit, with either loss."""

from typing import Any

import torch

from tpo_plugin.testing import TaskHeadTests


class TestRegion(TaskHeadTests):
    head = "region"
    heavy = ("torch", "transformers", "PIL")

    def make_targets(self, num: int) -> dict[str, Any]:
        low = torch.rand(num, 2) * 0.5
        return {"boxes_xyxy": torch.cat((low, low + 0.1 + torch.rand(num, 2) * 0.4), -1)}

    def make_task(self) -> dict[str, Any]:
        return {"boxes": [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.75, 1]], "time": 1.5}

    def make_inputs(self, num: int) -> dict[str, Any]:
        return self.make_targets(num)


class TestRegionMSE(TestRegion):
    config = {"loss": "mse"}  # noqa: RUF012
