"""Masks and boxes of records. N targets, M boxes that users give. No torch until tensors are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tpo_plugin as tpo
from tpo_head_mask import masks
from tpo_head_mask.architecture import architecture_of
from tpo_head_mask.config import MaskConfig

if TYPE_CHECKING:
    from PIL.Image import Image

    from tpo_head_mask.cache import EmbeddingCache

NAME = "mask"


class MaskCodec(tpo.TaskCodec):
    """What `masks` says that a task may hold."""

    fields = ("masks", "boxes", "box", "times")
    config: MaskConfig

    @property
    def cache(self) -> EmbeddingCache | None:
        """Kept image embeddings, where the checkpoint's hash says of which encoder they are."""
        if self.config.cache_dir is None or self.config.checkpoint_sha256 is None:
            return None
        from tpo_head_mask.cache import EmbeddingCache

        return EmbeddingCache(self.config.cache_dir, self.config.checkpoint_sha256, self.image_size)

    @property
    def image_size(self) -> int:
        """Side of SAM 2's square input, in pixels."""
        return architecture_of(self.config).image_size

    def check_task(self, task: dict[str, Any]) -> None:
        masks.check_task(task, self.config.max_mask_pixels)
        if "boxes" in task and "prompt" not in self.config.losses:
            raise ValueError(
                f"boxes is given, which losses {self.config.losses} cannot learn from; add 'prompt', or give masks"
            )

    def resolve(self, task: dict[str, Any], folder: Path) -> dict[str, Any]:
        return masks.resolve(task, folder)

    def named_files(self, task: dict[str, Any]) -> list[str]:
        return masks.named_files(task)

    def boxes_of(self, task: dict[str, Any]) -> list[Any]:
        return [box for box in (*task.get("boxes", ()), task.get("box")) if box is not None]

    def draw_tasks(self, tasks: list[dict[str, Any]], given: list[dict[str, Any]], sample: tpo.Sample) -> list[Image]:
        """The objects in the first and in the last frame that shows one of them; boxes that users give are blue."""
        from tpo_head_mask.drawing import draw_tasks

        return draw_tasks(tasks, given, sample)

    def collate_targets(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        """`masks`: for each target its T bool masks [H, W]; `boxes_xyxy` [N, 4] of its first frame, float32."""
        import torch

        from tpo_head_mask.inputs import target_box, target_masks

        read = [target_masks(task, self.config.clip_frames, self.config.max_mask_pixels) for task in tasks]
        boxes = [target_box(task, own[0] if own else None) for task, own in zip(tasks, read, strict=True)]
        return {"masks": read, "boxes_xyxy": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)}

    def collate_truth(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        """As `collate_targets`, but of all frames, whatever `clip_frames` is, with their `times` in seconds."""
        from tpo_head_mask.inputs import all_masks

        first = self.collate_targets(tasks)
        times = [task.get("times") or [0.0] for task in tasks]
        return first | {"masks": [all_masks(task, self.config.max_mask_pixels) for task in tasks], "times": times}

    def collate_inputs(
        self, tasks: list[dict[str, Any]], given: list[dict[str, Any]], samples: Sequence[Any] = ()
    ) -> dict[str, Any]:
        """`boxes_xyxy` [M, 4] that the users give; with targets and the pixel loss what `inputs.FrameLoader` reads;
        without targets `media`, one `inputs.Medium` for each row."""
        import torch

        from tpo_head_mask.inputs import FrameLoader, media_of

        for task in tasks:
            if "box" in task:
                raise tpo.TPOError("mask: a task of the answer has 'box'; expected 'masks' or 'boxes' ('box' is given)")
        for task in given:
            if "box" not in task:
                raise tpo.TPOError(f"mask: a task of the question has {sorted(task)}; expected 'box'")
        boxes = torch.tensor([task["box"] for task in given], dtype=torch.float32).reshape(-1, 4)
        inputs: dict[str, Any] = {"boxes_xyxy": boxes}
        if not tasks:
            return inputs | {"media": media_of(samples, NAME)}
        if "pixel" in self.config.losses:
            inputs |= FrameLoader(self.image_size, self.config.clip_frames, NAME, self.cache)(samples)
        return inputs
