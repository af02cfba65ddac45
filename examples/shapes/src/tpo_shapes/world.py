"""The "shapes" world: coloured shapes over soft crops of photographs, as arrays.

S scenes, F frames (1 for a picture), K object slots, P pixels of a side. Positions and sizes are 0 to 1 of the side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache

import numpy as np
from PIL import Image

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
RGB = np.array([[0.86, 0.16, 0.16], [0.13, 0.60, 0.20], [0.15, 0.30, 0.85], [0.93, 0.82, 0.15]], np.float32)

# All in the public domain or CC0, inside scikit-image's wheel. Held-out scenes stand on photographs never trained on.
PHOTOS = {"train": ("astronaut", "coffee", "rocket", "grass", "gravel"), "heldout": ("chelsea", "camera", "brick")}

EVENTS = ("appear", "leave", "turn")
"""What may happen to a shape of a clip: it is there, is away, or is turned, in its moments only."""

RADIUS = (0.105, 0.21)
MAX_OBJECTS = 4
PICTURE_SIZE = 96
"""Side of the files in pixels."""
CLIP_FPS = 2
CLIP_FRAMES = 8
CLIP_SECONDS = CLIP_FRAMES / CLIP_FPS
CLIP_TIMES = tuple(frame / CLIP_FPS for frame in range(CLIP_FRAMES))
"""When each frame is first shown, in seconds. A model sees all of them."""


@dataclass
class Scenes:
    """A batch of scenes; slots beyond a scene's number of objects hold -1 and zero boxes."""

    colour: np.ndarray
    """[S, K] int, index into COLOURS, -1 for an empty slot."""
    shape: np.ndarray
    """[S, K] int, index into SHAPES, -1 for an empty slot."""
    boxes_xyxy: np.ndarray
    """[S, F, K, 4] float32, 0 to 1."""
    times_s: np.ndarray
    """[F] seconds; a picture's only frame is at 0."""
    event: np.ndarray
    """[S, K] int, index into EVENTS, -1 for none."""
    spans_s: np.ndarray
    """[S, K, 2, 2] start and end of up to two moments, the second later; zeros where there is none."""

    def __len__(self) -> int:
        return len(self.colour)

    def in_moment(self, event: str) -> np.ndarray:
        """[S, F, K] bool: whether a shape has this event and the frame lies in one of its moments."""
        start, end = self.spans_s[:, None, ..., 0], self.spans_s[:, None, ..., 1]
        times = self.times_s[None, :, None, None]
        return ((start <= times) & (times < end)).any(-1) & (self.event == EVENTS.index(event))[:, None]

    def shown(self) -> np.ndarray:
        """[S, F, K] bool: whether a shape is to be seen."""
        appears = (self.event == EVENTS.index("appear"))[:, None]
        there = ~self.in_moment("leave") & (~appears | self.in_moment("appear"))
        return (self.colour >= 0)[:, None] & there


def sample_scenes(
    rng: np.random.Generator,
    num_scenes: int,
    times: tuple[float, ...] | None = None,
    max_objects: int = MAX_OBJECTS,
    turned: float = 0.0,
) -> Scenes:
    """Scenes of 2 to `max_objects` shapes that never touch, no colour-shape pair twice.

    `times` (seconds) makes clips: every shape moves on a straight line at constant speed from 0 s to the clip's end,
    and something happens to most shapes in one or two moments. `turned` is the share of a picture's shapes that stand
    turned (of its squares and triangles).
    """
    parts: list[Scenes] = []
    missing = num_scenes
    while missing > 0:
        scenes, valid = _try_scenes(rng, missing + missing // 4 + 8, times, max_objects, turned)
        names = [field.name for field in fields(scenes) if field.name != "times_s"]
        parts.append(replace(scenes, **{name: getattr(scenes, name)[valid][:missing] for name in names}))
        missing -= len(parts[-1])
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **joined)


def _try_scenes(
    rng: np.random.Generator,
    num_scenes: int,
    times: tuple[float, ...] | None,
    max_objects: int,
    turned: float,
    candidates: int = 32,
) -> tuple[Scenes, np.ndarray]:
    """Places one slot after the other; the second result says which scenes found room for all their shapes, [S]."""
    moving = times is not None
    times_s = np.asarray(times if times is not None else [0.0])
    share = times_s * CLIP_FPS / (CLIP_FRAMES - 1)
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
        for earlier in range(slot):
            placed = boxes[:, :, earlier, None]
            gap = np.maximum(tried[..., :2] - placed[..., 2:], placed[..., :2] - tried[..., 2:]).max(-1)
            free &= (gap > 0.02).all(1)
        choice = free.argmax(1)
        valid &= free[rows, choice] | ~present[:, slot]
        boxes[:, :, slot] = tried[rows, :, choice] * present[:, None, slot, None]
    colour = np.where(present, pairs % len(COLOURS), -1)
    shape = np.where(present, pairs // len(COLOURS), -1)
    event, spans_s = _sample_events(rng, colour, shape) if moving else _stand_turned(rng, colour, shape, turned)
    return Scenes(colour, shape, boxes, times_s, event, spans_s), valid


def _sample_events(rng: np.random.Generator, colour: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Event and moments of each slot of clips: each event, and none, for one slot of four. Circles never turn: nobody
    would see it."""
    event = rng.random(colour.shape).argsort(1)
    event[(event >= len(EVENTS)) | (colour < 0)] = -1
    event[(event == EVENTS.index("turn")) & (shape == SHAPES.index("circle"))] = -1
    spans_s = np.zeros((*colour.shape, 2, 2))
    for scene, slot in zip(*np.nonzero(event >= 0), strict=True):
        moments = _sample_moments(rng)
        spans_s[scene, slot, : len(moments)] = np.array(moments) / CLIP_FPS
    return event, spans_s


def _stand_turned(
    rng: np.random.Generator, colour: np.ndarray, shape: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """The same of pictures: nothing happens, but that a share of the squares and triangles stands turned."""
    turns = (rng.random(colour.shape) < share) & (colour >= 0) & (shape != SHAPES.index("circle"))
    spans_s = np.zeros((*colour.shape, 2, 2))
    spans_s[turns, 0] = 0.0, CLIP_SECONDS
    return np.where(turns, EVENTS.index("turn"), -1), spans_s


def _sample_moments(rng: np.random.Generator) -> list[tuple[int, int]]:
    """First frame, and the frame after the last, of one moment of 2 or 3 frames, or of two with 3 together.

    A shape that appears is so to be seen in fewer frames than one that leaves: the two cannot be taken for each other.
    """
    if rng.random() < 0.7:
        length = int(rng.integers(2, 4))
        start = int(rng.integers(0, CLIP_FRAMES - length + 1))
        return [(start, start + length)]
    first, gap = int(rng.integers(1, 3)), 2
    slack = CLIP_FRAMES - 3 - gap
    before = int(rng.integers(0, slack + 1))
    start = before + first + gap + int(rng.integers(0, slack - before + 1))
    return [(before, before + first), (start, start + 3 - first)]


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
    """Draws the shapes with smooth edges: [S, F, P, P, 3] uint8. Backgrounds [S, P, P, 3] stay the same over frames,
    but for the bar along the lower edge of a clip, which is as wide as the clip has been shown."""
    num_frames, size = scenes.boxes_xyxy.shape[1], backgrounds.shape[1]
    frames = np.repeat(backgrounds[:, None], num_frames, 1)
    for number, time_s in enumerate(scenes.times_s if num_frames > 1 else []):
        frames[:, number, -size // 24 :, : round(size * (time_s * CLIP_FPS + 1) / CLIP_FRAMES)] = 1
    tint = rng.uniform(-0.06, 0.06, (*scenes.colour.shape, 3)).astype(np.float32)
    for slot, which, depth in _depths(scenes, size):
        cover = np.clip(depth + 0.5, 0, 1)[..., None]
        colour = np.clip(RGB[scenes.colour[which, slot]] + tint[which, slot], 0, 1)[:, None, None, None]
        frames[which] += (colour - frames[which]) * cover
    return (np.clip(frames, 0, 1) * 255 + 0.5).astype(np.uint8)


def masks(scenes: Scenes, size: int = PICTURE_SIZE) -> np.ndarray:
    """Which pixels each shape covers by half or more, [S, F, K, P, P] bool; none where it is not to be seen."""
    covered = np.zeros((*scenes.boxes_xyxy.shape[:3], size, size), bool)
    for slot, which, depth in _depths(scenes, size):
        covered[which, :, slot] = depth > 0
    return covered


def _depths(scenes: Scenes, size: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Slot, the scenes that have a shape in it, [s], and how many pixels inside its edge each pixel lies, [s, F, P, P]:
    negative outside, and everywhere while it is not to be seen."""
    grid = np.arange(size, dtype=np.float32) + 0.5
    shown, turned = scenes.shown(), scenes.in_moment("turn")
    for slot in range(scenes.colour.shape[1]):
        which = np.flatnonzero(scenes.colour[:, slot] >= 0)
        if not len(which):
            continue
        box = scenes.boxes_xyxy[which, :, slot] * size  # [s, F, 4] pixels
        radius = ((box[..., 2] - box[..., 0]) / 2)[..., None, None]
        x = grid[None, None, None, :] - ((box[..., 0] + box[..., 2]) / 2)[..., None, None]
        y = grid[None, None, :, None] - ((box[..., 1] + box[..., 3]) / 2)[..., None, None]
        kind = scenes.shape[which, slot]
        depth = np.empty((len(which), box.shape[1], size, size), np.float32)
        for index in range(len(SHAPES)):
            own = kind == index
            depth[own] = _DEPTH[index](x[own], y[own], radius[own])
            other = own[:, None] & turned[which, :, slot]
            depth[other] = _TURNED[index](*(np.broadcast_to(v, depth.shape)[other] for v in (x, y, radius)))
        depth[~shown[which, :, slot]] = -1
        yield slot, which, depth


def _circle(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return radius - np.sqrt(x * x + y * y)


def _square(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return radius - np.maximum(np.abs(x), np.abs(y))


def _triangle(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Point up, as wide and as high as its box."""
    slope = ((y + radius) / 2 - np.abs(x)) * (2 / 5**0.5)
    return np.minimum(slope, radius - y)


def _standing_square(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """On one of its corners."""
    return (radius - np.abs(x) - np.abs(y)) / 2**0.5


def _hanging_triangle(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return _triangle(x, -y, radius)


_DEPTH = (_circle, _square, _triangle)
_TURNED = (_circle, _standing_square, _hanging_triangle)
