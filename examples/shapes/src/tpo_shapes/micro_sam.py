"""A SAM 2 of micro size, trained from scratch to outline shapes and to follow them from a rough box.

    python -m tpo_shapes.micro_sam FILE.safetensors

To the demo's mask head it is what a released checkpoint is to a user's: a file that it loads and keeps frozen. It lies
beside this module. N objects of a batch, F frames, P pixels of a side, S side of SAM 2's input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tpo_head_mask.backends.base import Backend, Decoded
from tpo_head_mask.checkpoints import build_backend
from tpo_head_mask.config import MaskConfig
from tpo_head_mask.inputs import to_square
from tpo_head_mask.losses import bce, dice, overlap

from tpo_shapes.world import CLIP_TIMES, MAX_OBJECTS, masks, render, sample_backgrounds, sample_scenes

ARCHITECTURE: dict[str, Any] = {"backend": "sam2", "size": "micro", "image_size": 96}
"""Fields of the mask head's config. The package sam2 can follow objects of different clips at once."""
FRAMES = (1, 2, 4)
"""Of the clips that it trains on, one after the other."""
SAM_STEPS = (600, 720, 180)
RATE = 1e-3
WEIGHTS = Path(__file__).with_suffix(".safetensors")
BOX_NOISE = 0.3
"""How far a corner of the box in the prompt may be off, up to this standard deviation, in sides of the box: the boxes
that a region head finds are no better at first."""


@dataclass
class Batch:
    """Objects of scenes, and the frames that they are in."""

    frames: Tensor
    """[scenes, F, 3, S, S] uint8."""
    rows: Tensor
    """[N] the scene of each object."""
    masks: Tensor
    """[N, F, S, S] float32, 0 or 1; the first frame of each has the object."""
    boxes_xyxy: Tensor
    """[N, 4] in the first frame, 0 to 1."""


def train_micro_sam(path: Path, steps: Sequence[int], seed: int) -> Path:
    """Trains a SAM 2 for so many steps on clips of 1, 2 and 4 frames (and pictures between them), and writes its
    weights to `path`, .safetensors in bfloat16 under the sam2 package's names. Prints the loss."""
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    sam = build_backend(MaskConfig(**ARCHITECTURE)).requires_grad_(True)
    backgrounds = sample_backgrounds(rng, 300, "train")
    optimizer = torch.optim.AdamW(sam.parameters(), RATE, betas=(0.9, 0.98))
    plan = [frames if step % 5 < 4 else 1 for frames, num in zip(FRAMES, steps, strict=True) for step in range(num)]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 25, (len(plan) - step) / (0.35 * len(plan)))
    )
    for step, num_frames in enumerate(plan):
        batch = make_batch(rng, 16 if num_frames == 1 else 6, num_frames, backgrounds)
        loss = loss_of(follow(sam, batch, candidates=step % 2 == 1), batch.masks)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 24:
            print(f"step {step + 1}/{len(plan)}, frames {num_frames}: loss {loss.item():.3f}", flush=True)
    temporary = path.with_name(f"{path.name}.new")
    state = {name: value.to(torch.bfloat16).contiguous() for name, value in sam.model.state_dict().items()}
    save_file(state, temporary)
    return temporary.replace(path)


def make_batch(rng: np.random.Generator, num_scenes: int, num_frames: int, backgrounds: np.ndarray) -> Batch:
    """All objects of the scenes that are there in the first frame; frames of a clip are one to three apart, where it
    has as many."""
    times = None
    if num_frames > 1:
        apart = int(rng.integers(1, min(3, (len(CLIP_TIMES) - 1) // (num_frames - 1)) + 1))
        start = int(rng.integers(0, len(CLIP_TIMES) - apart * (num_frames - 1)))
        times = tuple(CLIP_TIMES[start + apart * number] for number in range(num_frames))
    scenes = sample_scenes(rng, num_scenes, times, max_objects=MAX_OBJECTS if times is None else 3, turned=0.3)
    pixels = render(rng, scenes, backgrounds[rng.integers(0, len(backgrounds), num_scenes)])
    side = ARCHITECTURE["image_size"]
    frames = torch.stack([to_square(frame, side) for clip in pixels for frame in clip])
    true = masks(scenes)
    rows, slots = np.nonzero(true[:, 0].any((-1, -2)))
    own = torch.from_numpy(true[rows, :, slots]).float()
    shrunk = F.interpolate(own, (side, side), mode="bilinear", antialias=True) >= 0.5
    boxes = torch.from_numpy(scenes.boxes_xyxy[rows, 0, slots])
    return Batch(frames.unflatten(0, pixels.shape[:2]), torch.from_numpy(rows), shrunk.float(), boxes)


def follow(sam: Backend, batch: Batch, *, candidates: bool = False) -> list[Decoded]:
    """What SAM 2 says of each frame, prompted by rough boxes on the first.

    `candidates` gives, of pictures, the three masks that it chooses from where it is not prompted.
    """
    num_frames = batch.frames.shape[1]
    features = sam.encode(batch.frames.flatten(0, 1))
    prompts = sam.embed_boxes(roughly(batch.boxes_xyxy))
    with sam.dynamic_multimask(False):
        if num_frames > 1:
            tracker = sam.start(prompts)
            return [tracker.step(features[batch.rows * num_frames + frame]) for frame in range(num_frames)]
        return [sam.decode(features[batch.rows], prompts, multimask=candidates, dynamic=False)]


def roughly(boxes_xyxy: Tensor) -> Tensor:
    """The boxes with each corner moved, some boxes more, some less."""
    sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).repeat(1, 2)
    moved = boxes_xyxy + torch.randn_like(boxes_xyxy) * sides * BOX_NOISE * torch.rand(len(boxes_xyxy), 1)
    low = torch.minimum(moved[:, :2], moved[:, 2:] - 0.02)
    return torch.cat([low, torch.maximum(moved[:, 2:], low + 0.02)], 1).clamp(0, 1)


def loss_of(decoded: Sequence[Decoded], masks: Tensor) -> Tensor:
    """The mean over frames of 2 BCE + dice where the object is there, its score, and the guess of the overlap."""
    total = masks.new_zeros(())
    for number, frame in enumerate(decoded):
        num = frame.mask_logits.shape[1]
        true = masks[:, min(number, masks.shape[1] - 1)].repeat_interleave(num, 0)
        logits = F.interpolate(frame.mask_logits, true.shape[1:], mode="bilinear", align_corners=False).flatten(0, 1)
        present = true.flatten(1).any(1).to(logits)
        wrong = 2 * bce(logits, true) + dice(logits, true) + 0.3 * (frame.iou.flatten() - overlap(logits, true)).abs()
        score = frame.object_score_logits.repeat_interleave(num)
        total = total + (wrong * present).mean() + 0.5 * F.binary_cross_entropy_with_logits(score, present)
    return total / len(decoded)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    torch.set_num_threads(1)
    train_micro_sam(parser.parse_args().file, SAM_STEPS, seed=0)


if __name__ == "__main__":
    main()
