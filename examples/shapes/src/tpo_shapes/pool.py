"""Scenes as the tensors that the real processor would make of their files, for training without files.

N scenes, F frames, P pixels of the processor's side, G patches of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms.v2 import functional as transforms  # type: ignore[import-untyped]

from tpo_shapes.host import IMAGE_SIZE, PATCH_SIZE
from tpo_shapes.questions import Object, objects_of
from tpo_shapes.world import CLIP_TIMES, SHAPES, Scenes, render, sample_backgrounds, sample_scenes

NUM_CLASSES = 13
"""The 12 colour-shape pairs, and nothing."""


@dataclass
class Pool:
    """Many scenes, rendered once."""

    pixels: torch.Tensor
    """[N, F, 3, P, P] uint8, resized as the processor resizes."""
    classes: torch.Tensor
    """[N, F, G] class of the object that covers a patch, NUM_CLASSES - 1 for none."""
    boxes_xyxy: torch.Tensor
    """[N, F, G, 4] that object's box, 0 to 1."""
    objects: list[list[Object]]
    """The objects of each scene."""
    clip: bool

    def __len__(self) -> int:
        return len(self.objects)


def make_pool(seed: int, num_scenes: int, split: str, clip: bool = False, chunk: int = 256) -> Pool:
    """Renders scenes of a split; a clip keeps the frames that a model of four frames sees."""
    rng = np.random.default_rng(seed)
    parts: list[tuple[torch.Tensor, ...]] = []
    objects: list[list[Object]] = []
    for start in range(0, num_scenes, chunk):
        size = min(chunk, num_scenes - start)
        scenes = sample_scenes(rng, size, CLIP_TIMES if clip else None, max_objects=3 if clip else 4)
        frames = render(rng, scenes, sample_backgrounds(rng, size, split))
        parts.append((resize(torch.from_numpy(frames)), *patch_targets(scenes)))
        objects += [objects_of(scenes, index) for index in range(size)]
    pixels, classes, boxes = (torch.cat(field) for field in zip(*parts, strict=True))
    return Pool(pixels, classes, boxes, objects, clip)


def resize(frames: torch.Tensor) -> torch.Tensor:
    """[..., H, W, 3] uint8 to [..., 3, P, P] uint8, as the processor does it."""
    side = [IMAGE_SIZE, IMAGE_SIZE]
    interpolation = transforms.InterpolationMode.BICUBIC
    return transforms.resize(frames.movedim(-1, -3), side, interpolation=interpolation, antialias=True)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in -1 to 1, the processor's mean and deviation."""
    return pixels.float() / 127.5 - 1


def patch_targets(scenes: Scenes) -> tuple[torch.Tensor, torch.Tensor]:
    """What each patch shows: classes [N, F, G] and boxes [N, F, G, 4]. At least 30 % of a patch must be covered."""
    grid = IMAGE_SIZE // PATCH_SIZE
    corner = (
        torch.stack(torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="xy"), -1).reshape(-1, 2) / grid
    )
    boxes = torch.from_numpy(scenes.boxes_xyxy)[:, :, None]  # [N, F, 1, K, 4]
    low = torch.maximum(boxes[..., :2], corner[:, None])
    high = torch.minimum(boxes[..., 2:], corner[:, None] + 1 / grid)
    share, slot = ((high - low).clamp(min=0).prod(-1) * grid**2).max(-1)  # [N, F, G]
    label = torch.from_numpy(scenes.colour * len(SHAPES) + scenes.shape)[:, None].expand(-1, slot.shape[1], -1)
    classes = torch.where(share >= 0.3, label.gather(2, slot), NUM_CLASSES - 1)
    own = boxes[:, :, 0].gather(2, slot[..., None].expand(-1, -1, -1, 4))
    return classes, own
