"""The temporal head under the conformance kit."""

from typing import Any

import pytest
import torch

from tpo_plugin.testing import TaskHeadTests

SMALL = {
    "hidden": 16,
    "num_heads": 2,
    "feed_forward": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "cross_layers": 1,
    "dummy_layers": 1,
    "num_dummies": 3,
    "num_queries": 4,
    "total_prompts": 3,
}
FILES = {"features": "files", "video_size": 6, "text_features": "text", "text_size": 8}


class TestTemporal(TaskHeadTests):
    """With losses that are sums over samples, without the one that compares the samples of a batch with each other."""

    head = "temporal"
    config = {**SMALL, **FILES, "reference_losses": False, "align_weight": 0.0}  # noqa: RUF012
    heavy = ("torch", "transformers", "scipy", "PIL", "numpy")

    def make_targets(self, num: int) -> dict[str, Any]:
        start = torch.rand(num, 2, 1) * 4
        spans = torch.cat((start, start + 1 + torch.rand(num, 2, 1) * 4), -1)
        return {"spans_s": list(spans), "saliency": list(torch.rand(num, 5) * 12), "clip_s": torch.full((num,), 2.0)}

    def make_task(self) -> dict[str, Any]:
        return {"spans": [[1, 3], [5.5, 8]], "saliency": [0, 12, 3, 4, 0], "clip_s": 2}

    def make_inputs(self, num: int) -> dict[str, Any]:
        edges = torch.arange(6).float() * 2
        clips_s = torch.stack((edges[:-1] + 1, edges[:-1], edges[1:]), -1).expand(2, -1, -1)
        return {
            "clips_s": clips_s,
            "num_clips": torch.tensor([5.0, 4.0]),
            "duration_s": torch.tensor([10.0, 8.0]),
            "video_group": torch.tensor([0, 1]),
            "question_group": torch.tensor([0, 1]),
            "video": torch.rand(2, 5, 6),
            "words": torch.rand(2, 4, 8),
            "num_words": torch.tensor([4.0, 2.0]),
        }


class TestAsPublished(TestTemporal):
    config = {**SMALL, **FILES}  # noqa: RUF012

    @pytest.mark.xfail(reason="the published losses depend on what else is in the batch: twice the batch is not equal")
    def test_losses(self) -> None:
        super().test_losses()
