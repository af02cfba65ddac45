"""The "shapes" world: coloured shapes over soft crops of photographs, as arrays.

S scenes, F frames (1 for a picture), K object slots, P pixels of a side. Positions and sizes are 0 to 1 of the side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
RGB = np.array([[0.86, 0.16, 0.16], [0.13, 0.60, 0.20], [0.15, 0.30, 0.85], [0.93, 0.82, 0.15]], np.float32)

# All in the public domain or CC0, inside scikit-image's wheel. Held-out scenes stand on photographs never trained on.
PHOTOS = {"train": ("astronaut", "coffee", "rocket", "grass", "gravel"), "heldout": ("chelsea", "camera", "brick")}

RADIUS = (0.105, 0.21)
MAX_OBJECTS = 4
PICTURE_SIZE = 96
"""Side of the files in pixels."""
CLIP_FPS = 8
CLIP_FRAMES = 16
CLIP_TIMES = (0.25, 0.75, 1.25, 1.75)
"""Seconds: the middles of the clip's four quarters, which are the frames that a model of four frames sees."""


@dataclass
class Scenes:
    """A batch of scenes; slots beyond a scene's number of objects hold -1 and zero boxes."""

    colour: np.ndarray
    """[S, K] int, index into COLOURS, -1 for an empty slot."""
    shape: np.ndarray
    """[S, K] int, index into SHAPES, -1 for an empty slot."""
    boxes_xyxy: np.ndarray
    """[S, F, K, 4] float32, 0 to 1."""

    def __len__(self) -> int:
        return len(self.colour)


def sample_scenes(
    rng: np.random.Generator, num_scenes: int, times: tuple[float, ...] | None = None, max_objects: int = MAX_OBJECTS
) -> Scenes:
    """Scenes of 2 to `max_objects` shapes that never touch, no colour-shape pair twice.

    `times` (seconds) makes clips: every shape moves on a straight line at constant speed from 0 s to the clip's end.
    """
    share = np.zeros(1) if times is None else np.asarray(times) * CLIP_FPS / (CLIP_FRAMES - 1)
    parts: list[Scenes] = []
    missing = num_scenes
    while missing > 0:
        scenes, valid = _try_scenes(rng, missing + missing // 4 + 8, share, times is not None, max_objects)
        parts.append(Scenes(scenes.colour[valid], scenes.shape[valid], scenes.boxes_xyxy[valid]))
        missing -= int(valid.sum())
    joined = [
        np.concatenate(field)[:num_scenes]
        for field in zip(*((p.colour, p.shape, p.boxes_xyxy) for p in parts), strict=True)
    ]
    return Scenes(*joined)


def _try_scenes(
    rng: np.random.Generator, num_scenes: int, share: np.ndarray, moving: bool, max_objects: int, candidates: int = 32
) -> tuple[Scenes, np.ndarray]:
    """Places one slot after the other; the second result says which scenes found room for all their shapes, [S]."""
    rows = np.arange(num_scenes)
    counts = rng.integers(2, max_objects + 1, num_scenes)
    pairs = rng.random((num_scenes, len(COLOURS) * len(SHAPES))).argsort(1)[:, :MAX_OBJECTS]
    present = np.arange(MAX_OBJECTS) < counts[:, None]
    boxes = np.zeros((num_scenes, len(share), MAX_OBJECTS, 4), np.float32)
    valid = np.ones(num_scenes, bool)
    for slot in range(max_objects):
        radius = np.asarray(rng.uniform(*RADIUS, (num_scenes, candidates, 1)), np.float32)
        start = radius + rng.random((num_scenes, candidates, 2), np.float32) * (1 - 2 * radius)
        drift = np.asarray(rng.uniform(-0.5, 0.5, start.shape), np.float32) * moving
        end = np.clip(start + drift, radius, 1 - radius)
        centre = start[:, None] + (end - start)[:, None] * share[None, :, None, None].astype(np.float32)
        tried = np.concatenate([centre - radius[:, None], centre + radius[:, None]], -1)  # [S, F, C, 4]
        free = np.ones((num_scenes, candidates), bool)
        for other in range(slot):
            placed = boxes[:, :, other, None]
            gap = np.maximum(tried[..., :2] - placed[..., 2:], placed[..., :2] - tried[..., 2:]).max(-1)
            free &= (gap > 0.02).all(1)
        choice = free.argmax(1)
        valid &= free[rows, choice] | ~present[:, slot]
        boxes[:, :, slot] = tried[rows, :, choice] * present[:, None, slot, None]
    colour = np.where(present, pairs % len(COLOURS), -1)
    shape = np.where(present, pairs // len(COLOURS), -1)
    return Scenes(colour, shape, boxes), valid


@cache
def _photo(name: str) -> Image.Image:
    import skimage.data

    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def sample_backgrounds(
    rng: np.random.Generator, num_scenes: int, split: str, size: int = PICTURE_SIZE, contrast: float = 0.35
) -> np.ndarray:
    """Soft grey-toned crops of the split's photographs, [S, P, P, 3] float32 in 0 to 1."""
    result = np.empty((num_scenes, size, size, 3), np.float32)
    names = PHOTOS[split]
    for index in range(num_scenes):
        photo = _photo(names[rng.integers(len(names))])
        side = int(rng.integers(90, min(photo.size, default=0) // 2 + 1))
        x, y = (int(rng.integers(0, extent - side + 1)) for extent in photo.size)
        result[index] = np.asarray(photo.resize((size, size), Image.Resampling.BILINEAR, (x, y, x + side, y + side)))
    result /= 255
    grey = result.mean(-1, keepdims=True)
    return 0.5 + contrast * (0.6 * result + 0.4 * grey - 0.5)


def render(rng: np.random.Generator, scenes: Scenes, backgrounds: np.ndarray) -> np.ndarray:
    """Draws the shapes with smooth edges: [S, F, P, P, 3] uint8. Backgrounds [S, P, P, 3] stay the same over frames."""
    num_scenes, num_frames = scenes.boxes_xyxy.shape[:2]
    size = backgrounds.shape[1]
    frames = np.repeat(backgrounds[:, None], num_frames, 1)
    grid = np.arange(size, dtype=np.float32) + 0.5
    tint = rng.uniform(-0.06, 0.06, (num_scenes, MAX_OBJECTS, 3)).astype(np.float32)
    for slot in range(MAX_OBJECTS):
        which = np.flatnonzero(scenes.colour[:, slot] >= 0)
        if not len(which):
            continue
        box = scenes.boxes_xyxy[which, :, slot] * size  # [s, F, 4] pixels
        radius = ((box[..., 2] - box[..., 0]) / 2)[..., None, None]
        x = grid[None, None, None, :] - ((box[..., 0] + box[..., 2]) / 2)[..., None, None]
        y = grid[None, None, :, None] - ((box[..., 1] + box[..., 3]) / 2)[..., None, None]
        kind = scenes.shape[which, slot]
        depth = np.empty((len(which), num_frames, size, size), np.float32)  # pixels inside the edge, negative outside
        for index in range(len(SHAPES)):
            own = kind == index
            depth[own] = _DEPTH[index](x[own], y[own], radius[own])
        cover = np.clip(depth + 0.5, 0, 1)[..., None]
        colour = np.clip(RGB[scenes.colour[which, slot]] + tint[which, slot], 0, 1)[:, None, None, None]
        frames[which] += (colour - frames[which]) * cover
    return (np.clip(frames, 0, 1) * 255 + 0.5).astype(np.uint8)


def _circle(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return radius - np.sqrt(x * x + y * y)


def _square(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return radius - np.maximum(np.abs(x), np.abs(y))


def _triangle(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Point up, as wide and as high as its box."""
    slope = ((y + radius) / 2 - np.abs(x)) * (2 / 5**0.5)
    return np.minimum(slope, radius - y)


_DEPTH = (_circle, _square, _triangle)
