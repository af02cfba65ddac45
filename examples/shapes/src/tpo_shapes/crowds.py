"""Crowds: pictures of the same world with up to 20 shapes, which are smaller, and of which several may be alike.

S scenes, K object slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tpo_shapes.world import COLOURS, SHAPES, Scenes

MOST = 20
"""Objects of a crowd."""
RADIUS = (0.055, 0.08)
_GAP, _CANDIDATES = 0.01, 256


def sample_crowds(rng: np.random.Generator, wanted: Sequence[tuple[str, int]]) -> Scenes:
    """A scene for each (name, number): so many objects have that colour or shape, of all ("") where the name is empty.

    Any number of others stand with those of a name, up to `MOST` together, and one at least. None touch.
    """
    slots = (len(wanted), MOST)
    colour, shape = np.full(slots, -1), np.full(slots, -1)
    boxes = np.zeros((len(wanted), 1, MOST, 4), np.float32)
    for scene, (name, number) in enumerate(wanted):
        total = number + (int(rng.integers(not number, MOST - number + 1)) if name else 0)
        colour[scene, :total] = rng.integers(0, len(COLOURS), total)
        shape[scene, :total] = rng.integers(0, len(SHAPES), total)
        for values, names in ((colour[scene], COLOURS), (shape[scene], SHAPES)):
            if name in names:
                values[:number] = names.index(name)
                others = rng.integers(1, len(names), total - number)
                values[number:total] = (names.index(name) + others) % len(names)
        boxes[scene, 0, :total] = _place(rng, total)
    return Scenes(colour, shape, boxes, np.zeros(1), np.full(slots, -1), np.zeros((*slots, 2, 2)))


def _place(rng: np.random.Generator, number: int) -> np.ndarray:
    """Boxes [number, 4] that do not touch. The largest seek a place first; they stand in any order."""
    while True:
        boxes = np.zeros((0, 4))
        for radius in sorted(rng.uniform(*RADIUS, number), reverse=True):
            centre = rng.uniform(radius, 1 - radius, (_CANDIDATES, 1, 2))
            tried = np.concatenate([centre - radius, centre + radius], -1)  # [C, 1, 4]
            gap = np.maximum(tried[..., :2] - boxes[:, 2:], boxes[:, :2] - tried[..., 2:]).max(-1)
            free = (gap > _GAP).all(1)
            if not free.any():
                break
            boxes = np.concatenate([boxes, tried[free.argmax()]])
        if len(boxes) == number:
            return boxes[rng.permutation(number)]
