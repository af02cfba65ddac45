"""Scenes as the tensors that the real processor would make of their files, for training without files.

N scenes, F frames, P pixels of the processor's side, G patches of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torchvision.transforms.v2 import functional as transforms  # type: ignore[import-untyped]

from tpo_shapes.host import IMAGE_SIZE, PATCH_SIZE
from tpo_shapes.questions import Object, objects_of
from tpo_shapes.world import CLIP_TIMES, COLOURS, SHAPES, Scenes, render, sample_backgrounds, sample_scenes

NUM_THINGS = 2 * len(COLOURS) * len(SHAPES)
"""The 12 colour-shape pairs, and the same turned (circles never are)."""


@dataclass
class Pool:
    """Many scenes, rendered once."""

    pixels: torch.Tensor
    """[N, F, 3, P, P] uint8, resized as the processor resizes."""
    classes: torch.Tensor
    """[N, F, G] which of the things covers a patch, NUM_THINGS for none."""
    boxes_xyxy: torch.Tensor
    """[N, F, G, 4] that object's box, 0 to 1."""
    present: torch.Tensor
    """[N, F, NUM_THINGS] bool: whether a thing is in the frame."""
    number: torch.Tensor
    """[N, F] which frame of a clip it is, -100 for a picture."""
    objects: list[list[Object]]
    """The objects of each scene."""
    clip: bool

    def __len__(self) -> int:
        return len(self.objects)


def make_pool(
    seed: int, num_scenes: int, split: str, clip: bool = False, turned: float = 0.0, chunk: int = 256
) -> Pool:
    """Renders scenes of a split; a clip has all of its frames, and of a picture's shapes a share stands turned."""
    rng = np.random.default_rng(seed)
    parts: list[tuple[torch.Tensor, ...]] = []
    objects: list[list[Object]] = []
    for start in range(0, num_scenes, chunk):
        size = min(chunk, num_scenes - start)
        scenes = sample_scenes(rng, size, CLIP_TIMES if clip else None, max_objects=3 if clip else 4, turned=turned)
        frames = render(rng, scenes, sample_backgrounds(rng, size, split))
        parts.append((resize(torch.from_numpy(frames)), *vision_targets(scenes)))
        objects += [objects_of(scenes, index) for index in range(size)]
    pixels, classes, boxes, present = (torch.cat(field) for field in zip(*parts, strict=True))
    number = torch.arange(len(CLIP_TIMES)) if clip else torch.tensor([-100])
    return Pool(pixels, classes, boxes, present, number.expand(num_scenes, -1), objects, clip)


def resize(frames: torch.Tensor) -> torch.Tensor:
    """[..., H, W, 3] uint8 to [..., 3, P, P] uint8, as the processor does it."""
    side = [IMAGE_SIZE, IMAGE_SIZE]
    interpolation = transforms.InterpolationMode.BICUBIC
    return transforms.resize(frames.movedim(-1, -3), side, interpolation=interpolation, antialias=True)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in -1 to 1, the processor's mean and deviation."""
    return pixels.float() / 127.5 - 1


def vision_targets(scenes: Scenes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What patches show, `classes` [N, F, G] and `boxes_xyxy` [N, F, G, 4], and frames, `present` [N, F, things].

    An object covers a patch if at least 30 % of the patch lie in its box.
    """
    grid = IMAGE_SIZE // PATCH_SIZE
    corner = (
        torch.stack(torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="xy"), -1).reshape(-1, 2) / grid
    )
    boxes = torch.from_numpy(scenes.boxes_xyxy)[:, :, None]  # [N, F, 1, K, 4]
    low = torch.maximum(boxes[..., :2], corner[:, None])
    high = torch.minimum(boxes[..., 2:], corner[:, None] + 1 / grid)
    shown = torch.from_numpy(scenes.shown())
    cover = (high - low).clamp(min=0).prod(-1) * grid**2 * shown[:, :, None]
    share, slot = cover.max(-1)  # [N, F, G]
    thing = torch.from_numpy(scenes.colour * len(SHAPES) + scenes.shape)[:, None]
    thing = thing + torch.from_numpy(scenes.in_moment("turn")) * (len(COLOURS) * len(SHAPES))
    thing = torch.where(shown, thing, NUM_THINGS)  # [N, F, K]
    classes = torch.where(share >= 0.3, thing.gather(2, slot), NUM_THINGS)
    own = boxes[:, :, 0].gather(2, slot[..., None].expand(-1, -1, -1, 4))
    return classes, own, nn.functional.one_hot(thing, NUM_THINGS + 1).amax(2)[..., :-1].bool()
