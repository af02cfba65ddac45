"""Questions and answers about one scene, as turns of a conversation.

A placeholder in a question stands for a box that the user gives, one in an answer for a box that is wanted.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tpo_shapes.world import CLIP_TIMES, COLOURS, SHAPES, Scenes

Box = list[float]
PLACEHOLDER = "<region>"
NUMBERS = ("zero", "one", "two", "three", "four")

REGION_WORDINGS = (
    "where is the {}?",
    "find the {}.",
    "point at the {}.",
    "locate the {}.",
    "show me the {}.",
    "where can i see the {}?",
)
REGION_ANSWER = f"it is here {PLACEHOLDER}"


@dataclass
class Object:
    """One shape of a scene."""

    colour: str
    shape: str
    boxes_xyxy: list[Box]
    """A box a frame, 0 to 1."""

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    def centre(self, frame: int) -> tuple[float, float]:
        x0, y0, x1, y1 = self.boxes_xyxy[frame]
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass
class Turn:
    """One question with its answer; placeholders in the question are given boxes, in the answer wanted boxes."""

    kind: str
    question: str
    answer: str
    boxes: list[Box] = field(default_factory=list)
    """The box of each placeholder, the question's first."""
    time: float | None = None
    """Seconds, for a clip."""


def objects_of(scenes: Scenes, index: int) -> list[Object]:
    """The objects of one scene."""
    present = [slot for slot, colour in enumerate(scenes.colour[index]) if colour >= 0]
    boxes = scenes.boxes_xyxy[index].astype(float).round(4)
    return [
        Object(COLOURS[scenes.colour[index, s]], SHAPES[scenes.shape[index, s]], boxes[:, s].tolist()) for s in present
    ]


def _when(frame: int | None) -> str:
    return "" if frame is None else f"at {CLIP_TIMES[frame]:g} seconds, "


def _only(objects: list[Object], attribute: str) -> list[Object]:
    values = [getattr(o, attribute) for o in objects]
    return [o for o, value in zip(objects, values, strict=True) if values.count(value) == 1]


def colour(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """Which colour the only object of a shape has."""
    unique = _only(objects, "shape")
    if not unique:
        return None
    chosen = rng.choice(unique)
    wording = rng.choice(("what colour is the {}?", "which colour does the {} have?"))
    return Turn("colour", wording.format(chosen.shape), chosen.colour)


def shape(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """Which shape the only object of a colour has."""
    unique = _only(objects, "colour")
    if not unique:
        return None
    chosen = rng.choice(unique)
    wording = rng.choice(("what shape is the {} one?", "which shape does the {} object have?"))
    return Turn("shape", wording.format(chosen.colour), chosen.shape)


def count(rng: random.Random, objects: list[Object], frame: int | None) -> Turn:
    """How many objects there are."""
    wording = rng.choice(("how many objects are there?", "how many objects can you see?"))
    return Turn("count", wording, NUMBERS[len(objects)])


def exists(rng: random.Random, objects: list[Object], frame: int | None) -> Turn:
    """Whether an object is there; the wrong name shares a colour or a shape with one that is."""
    names = {o.name for o in objects}
    yes = rng.random() < 0.5
    if yes:
        name = rng.choice(objects).name
    else:
        near = rng.choice(objects)
        pool = [f"{c} {near.shape}" for c in COLOURS] + [f"{near.colour} {s}" for s in SHAPES]
        name = rng.choice([n for n in pool if n not in names])
    wording = rng.choice(("is there a {}?", "can you see a {}?"))
    return Turn("exists", wording.format(name), "yes" if yes else "no")


_RELATIONS: dict[str, Callable[[float, float], float]] = {
    "left of": lambda dx, dy: -dx,
    "right of": lambda dx, dy: dx,
    "above": lambda dx, dy: -dy,
    "below": lambda dx, dy: dy,
}


def relation(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """How two objects lie to each other, where that is plain."""
    first, second = rng.sample(objects, 2)
    (ax, ay), (bx, by) = first.centre(frame or 0), second.centre(frame or 0)
    word = rng.choice(list(_RELATIONS))
    amount = _RELATIONS[word](ax - bx, ay - by)
    if abs(amount) < 0.1:
        return None
    question = f"{_when(frame)}is the {first.name} {word} the {second.name}?"
    return Turn("relation", question, "yes" if amount > 0 else "no")


def side(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """On which half of the picture an object is."""
    chosen = rng.choice(objects)
    axis = rng.randrange(2)
    position = chosen.centre(frame or 0)[axis]
    if abs(position - 0.5) < 0.06:
        return None
    words = (("left", "right"), ("top", "bottom"))[axis]
    question = f"{_when(frame)}is the {chosen.name} at the {words[0]} or the {words[1]}?"
    return Turn("side", question, words[position > 0.5])


_ROWS = ("top", "middle", "bottom")
_COLUMNS = ("left", "centre", "right")


def place(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """In which ninth of the picture an object is, away from the borders between them."""
    chosen = rng.choice(objects)
    x, y = chosen.centre(frame or 0)
    if any(abs(v - border) < 0.025 for v in (x, y) for border in (0.38, 0.62)):
        return None
    row, column = (_ROWS[(y > 0.38) + (y > 0.62)], _COLUMNS[(x > 0.38) + (x > 0.62)])
    return Turn("place", f"{_when(frame)}which part of the picture is the {chosen.name} in?", f"{row} {column}")


def size(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """How big an object is, in three classes."""
    chosen = rng.choice(objects)
    x0, _, x1, _ = chosen.boxes_xyxy[frame or 0]
    radius = (x1 - x0) / 2
    if any(abs(radius - border) < 0.008 for border in (0.14, 0.175)):
        return None
    word = ("small", "medium", "large")[(radius > 0.14) + (radius > 0.175)]
    return Turn("size", f"how big is the {chosen.name}?", word)


def motion(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """Which way an object of a clip moves."""
    chosen = rng.choice(objects)
    axis = rng.randrange(2)
    moved = chosen.centre(-1)[axis] - chosen.centre(0)[axis]
    if len(chosen.boxes_xyxy) == 1 or abs(moved) < 0.1:
        return None
    words = (("left", "right"), ("up", "down"))[axis]
    question = f"does the {chosen.name} move {words[0]} or {words[1]}?"
    return Turn("motion", question, words[moved > 0])


def region(rng: random.Random, objects: list[Object], frame: int | None) -> Turn:
    """Where an object is: the answer ends in a box."""
    chosen = rng.choice(objects)
    question = _when(frame) + rng.choice(REGION_WORDINGS).format(chosen.name)
    return Turn("region", question, REGION_ANSWER, [chosen.boxes_xyxy[frame or 0]], _time(frame))


def given_colour(rng: random.Random, objects: list[Object], frame: int | None) -> Turn:
    """Which colour the object in a box that the user gives has."""
    chosen = rng.choice(objects)
    question = f"{_when(frame)}what colour is the object in {PLACEHOLDER}?"
    return Turn("given_colour", question, chosen.colour, [chosen.boxes_xyxy[frame or 0]], _time(frame))


def given_shape(rng: random.Random, objects: list[Object], frame: int | None) -> Turn:
    """Which shape the object in a box that the user gives has."""
    chosen = rng.choice(objects)
    question = f"{_when(frame)}what shape is the object in {PLACEHOLDER}?"
    return Turn("given_shape", question, chosen.shape, [chosen.boxes_xyxy[frame or 0]], _time(frame))


def _time(frame: int | None) -> float | None:
    return None if frame is None else CLIP_TIMES[frame]


CHAT = {f.__name__: f for f in (colour, shape, count, exists, relation, side, place, size)}
CLIP_CHAT = {f.__name__: f for f in (colour, count, exists, relation, side, place, motion)}
TASKS = {f.__name__: f for f in (region, given_colour, given_shape)}
KINDS = {**CHAT, **CLIP_CHAT, **TASKS}


def ask(rng: random.Random, objects: list[Object], kinds: dict[str, float], num_turns: int, clip: bool) -> list[Turn]:
    """Up to `num_turns` different questions about one scene, of kinds drawn by weight; each box at most once a kind."""
    names, weights = list(kinds), list(kinds.values())
    turns: dict[str, Turn] = {}
    for kind in rng.choices(names, weights, k=4 * num_turns):
        turn = KINDS[kind](rng, objects, rng.randrange(len(CLIP_TIMES)) if clip else None)
        if turn is not None:
            turns.setdefault(f"{turn.kind} {turn.boxes}" if turn.boxes else turn.question, turn)
        if len(turns) == num_turns:
            break
    return list(turns.values())


def all_texts() -> list[str]:
    """Every wording with every filling, for building a vocabulary."""
    rng = random.Random(0)
    texts = [*COLOURS, *SHAPES, *NUMBERS, *_ROWS, *_COLUMNS, "small", "medium", "large", REGION_ANSWER]
    still = [[0.1, 0.1, 0.3, 0.3]] * len(CLIP_TIMES)
    moved = [[0.6, 0.6, 0.8, 0.8]] * (len(CLIP_TIMES) - 1)
    objects = [Object("red", "circle", still), Object("blue", "square", still[:1] + moved)]
    for make in KINDS.values():
        for frame in [None, *range(len(CLIP_TIMES))]:
            turns = (make(rng, objects, frame) for _ in range(40))
            texts += [f"{turn.question} {turn.answer}" for turn in turns if turn is not None]
    return texts
