"""The mask head on the conformance kit: each backend, each loss, frozen and trained, an image and a clip."""

from typing import Any

import pytest
import torch
from tpo_head_mask import rle

from tpo_plugin.testing import TaskHeadTests

SIDE, SIZE = 32, (48, 64)
MICRO = {"size": "micro", "image_size": SIDE}


class TestMaskSam2(TaskHeadTests):
    head = "mask"
    config = {**MICRO, "backend": "sam2"}  # noqa: RUF012
    heavy = ("torch", "transformers", "PIL", "sam2", "av", "numpy")
    frames = 1

    @pytest.fixture(autouse=True)
    def _backend(self) -> None:
        pytest.importorskip("sam2" if self.config["backend"] == "sam2" else "transformers.models.sam2_video")

    def make_targets(self, num: int) -> dict[str, Any]:
        boxes = torch.rand(num, 4).sort(-1).values
        return {"masks": [list(torch.rand(self.frames, *SIZE) > 0.5) for _ in range(num)], "boxes_xyxy": boxes}

    def make_task(self) -> dict[str, Any]:
        masks = [rle.encode((torch.rand(*SIZE) > 0.5).numpy()) for _ in range(self.frames)]
        return {"masks": masks, "times": [0.5 * t for t in range(self.frames)]}

    def make_inputs(self, num: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(num)
        return {
            "boxes_xyxy": torch.rand(num, 4, generator=generator),
            "frame_index": [list(range(self.frames)) for _ in range(num)],
            "sizes": torch.tensor([SIZE] * num, dtype=torch.float32).reshape(-1, 2),
            "features": None,
            "frames": torch.randint(0, 256, (self.frames, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator),
            "keys": [""] * self.frames,
        }


class TestMaskTransformers(TestMaskSam2):
    config = {**MICRO, "backend": "transformers"}  # noqa: RUF012


class TestMaskClipAndPrompt(TestMaskSam2):
    config = {  # noqa: RUF012
        **MICRO,
        "backend": "sam2",
        "losses": ["pixel", "prompt"],
        "pixel_loss": "focal",
        "train": "all",
        "clip_frames": 3,
    }
    frames = 3


class TestMaskClipTransformers(TestMaskClipAndPrompt):
    config = {**MICRO, "backend": "transformers", "train": "decoder", "clip_frames": 3}  # noqa: RUF012


class TestMaskPromptAlone(TestMaskSam2):
    config = {**MICRO, "backend": "sam2", "losses": ["prompt"]}  # noqa: RUF012

    def make_inputs(self, num: int) -> dict[str, Any]:
        return {"boxes_xyxy": torch.rand(num, 4)}
