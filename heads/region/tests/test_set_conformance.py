"""The set head on the conformance kit, with any number of boxes and with none."""

from typing import Any

import torch

from tpo_plugin.testing import TaskHeadTests


class TestRegionSet(TaskHeadTests):
    head = "region_set"
    heavy = ("torch", "transformers", "PIL", "scipy")

    def make_targets(self, num: int) -> dict[str, Any]:
        """The second has none."""
        low = [torch.rand(2 * (n % 2 == 0), 2) * 0.5 for n in range(num)]
        return {"boxes_xyxy": [torch.cat((x, x + 0.1 + torch.rand_like(x) * 0.4), -1) for x in low]}

    def make_task(self) -> dict[str, Any]:
        return {"boxes": [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.75, 1]], "time": 1.5}


class TestFewQueries(TestRegionSet):
    config = {"max_boxes": 2, "width": 8, "layers": 1}  # noqa: RUF012


class TestNothingThere(TestRegionSet):
    def make_targets(self, num: int) -> dict[str, Any]:
        return {"boxes_xyxy": [torch.zeros(0, 4)] * num}

    def make_task(self) -> dict[str, Any]:
        return {"boxes": []}
