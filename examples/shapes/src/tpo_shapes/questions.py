"""Questions and answers about one scene, as turns of a conversation.

A placeholder in a question stands for a box that the user gives, one in an answer for a box, for moments or for masks
that are wanted.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tpo_shapes.world import CLIP_TIMES, COLOURS, EVENTS, SHAPES, Scenes

Box = list[float]
Span = list[float]
Mask = dict[str, Any]
"""COCO RLE."""
PLACEHOLDER, MOMENTS, MASK = "<region>", "<temporal>", "<mask>"
ASKED_FRAMES = range(1, len(CLIP_TIMES), 2)
"""The frames of a clip that questions name: those of its half, one and a half, ... seconds."""
NUMBERS = ("zero", "one", "two", "three", "four")

REGION_WORDINGS = (
    "where is the {}?",
    "find the {}.",
    "point at the {}.",
    "locate the {}.",
    "show me the {}.",
    "where can i see the {}?",
)
# The host says all words of these in its conversations.
REGION_ANSWER = f"it is here {PLACEHOLDER}"
MOMENT_ANSWER = f"at {MOMENTS}"
MASK_ANSWER = f"it is here {MASK}"
OUTLINE_WORDINGS = ("outline the {}.", "segment the {}.", "mask the {}.")
FOLLOW_WORDINGS = ("follow the {}.", "track the {}.", "show me the path of the {}.")
FOLLOW_GIVEN_WORDINGS = (f"follow the object in {MASK}.", f"track the object in {MASK}.")
MOMENT_WORDINGS = {
    "appear": ("when does the {} appear?", "when can you see the {}?", "when is the {} there?"),
    "leave": ("when does the {} leave?", "when is the {} away?", "when is the {} gone?"),
    "turn": ("when does the {} turn?", "when is the {} turned?"),
}
HAPPENS = {
    "appear": "it appears",
    "leave": "it leaves",
    "turn": "it turns",
    None: "nothing",
}
TASK_WORDS = "outline segment mask follow track path object gone leave leaves away turned appear appears"
"""Words that questions about tasks use or may use; the host's vocabulary has them."""


@dataclass
class Object:
    """One shape of a scene."""

    colour: str
    shape: str
    boxes_xyxy: list[Box]
    """A box a frame, 0 to 1."""
    event: str | None = None
    """What happens to it, of EVENTS."""
    spans_s: list[Span] = field(default_factory=list)
    """When: start and end of each moment, in seconds."""
    shown: list[bool] = field(default_factory=list)
    """For each frame, whether it is to be seen."""
    masks: list[Mask | None] = field(default_factory=list)
    """For each frame its pixels, None while it is not to be seen; empty where nobody asked for masks."""

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
    """Seconds, for a box of a clip."""
    spans_s: list[Span] = field(default_factory=list)
    """The wanted moments."""
    masks: list[Mask | None] = field(default_factory=list)
    """The wanted masks, one for each frame."""
    first_box: Box | None = None
    """The box of the first frame that the question gives, of what is to be followed."""


def objects_of(scenes: Scenes, index: int, covered: np.ndarray | None = None) -> list[Object]:
    """The objects of one scene; with masks where `world.masks` is given."""
    present = [slot for slot, colour in enumerate(scenes.colour[index]) if colour >= 0]
    boxes = scenes.boxes_xyxy[index].astype(float).round(4)
    shown = scenes.shown()[index]
    return [
        Object(
            COLOURS[scenes.colour[index, s]],
            SHAPES[scenes.shape[index, s]],
            boxes[:, s].tolist(),
            EVENTS[scenes.event[index, s]] if scenes.event[index, s] >= 0 else None,
            [span for span in scenes.spans_s[index, s].tolist() if span[1] > span[0]],
            shown[:, s].tolist(),
            [] if covered is None else _encoded(covered[index, :, s]),
        )
        for s in present
    ]


def _encoded(masks: np.ndarray) -> list[Mask | None]:
    from tpo_head_mask import rle  # here, for the host and its words need no head

    return [rle.encode(mask) if mask.any() else None for mask in masks]


def when(frame: int | None) -> str:
    """How a question about a clip names the frame that it is about."""
    return "" if frame is None else f"at {CLIP_TIMES[frame]:g} seconds, "


def _only(objects: list[Object], attribute: str) -> list[Object]:
    values = [getattr(o, attribute) for o in objects]
    return [o for o, value in zip(objects, values, strict=True) if values.count(value) == 1]


def _shown(objects: list[Object], frame: int | None) -> list[Object]:
    """Those to be seen in the named frame."""
    return [o for o in objects if o.shown[frame or 0]]


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


def count(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """How many objects a picture has."""
    wording = rng.choice(("how many objects are there?", "how many objects can you see?"))
    return Turn("count", wording, NUMBERS[len(objects)])


def exists(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
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
    return Turn("exists", wording.format(name), "yes it is here" if yes else "no it is not here")


_RELATIONS: dict[str, Callable[[float, float], float]] = {
    "left of": lambda dx, dy: -dx,
    "right of": lambda dx, dy: dx,
    "above": lambda dx, dy: -dy,
    "below": lambda dx, dy: dy,
}


def relation(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """How two objects lie to each other, where that is plain."""
    shown = _shown(objects, frame)
    if len(shown) < 2:
        return None
    first, second = rng.sample(shown, 2)
    (ax, ay), (bx, by) = first.centre(frame or 0), second.centre(frame or 0)
    word = rng.choice(list(_RELATIONS))
    amount = _RELATIONS[word](ax - bx, ay - by)
    if abs(amount) < 0.1:
        return None
    question = f"{when(frame)}is the {first.name} {word} the {second.name}?"
    return Turn("relation", question, "yes" if amount > 0 else "no")


def side(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """On which half of the picture an object is."""
    if not (shown := _shown(objects, frame)):
        return None
    chosen = rng.choice(shown)
    axis = rng.randrange(2)
    position = chosen.centre(frame or 0)[axis]
    if abs(position - 0.5) < 0.06:
        return None
    words = (("left", "right"), ("top", "bottom"))[axis]
    question = f"{when(frame)}is the {chosen.name} at the {words[0]} or the {words[1]}?"
    return Turn("side", question, words[position > 0.5])


_ROWS = ("top", "middle", "bottom")
_COLUMNS = ("left", "centre", "right")
_BORDERS = (0.38, 0.62)
"""Between rows, and between columns."""


def _between(x: float, y: float) -> bool:
    return any(abs(v - border) < 0.03 for v in (x, y) for border in _BORDERS)


def _ninth(x: float, y: float) -> str:
    row, column = (sum(v > border for border in _BORDERS) for v in (y, x))
    return f"{_ROWS[row]} {_COLUMNS[column]}"


def place(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """In which ninth of the picture an object is, away from the borders between them."""
    if not (shown := _shown(objects, frame)):
        return None
    chosen = rng.choice(shown)
    x, y = chosen.centre(frame or 0)
    if _between(x, y):
        return None
    return Turn("place", f"{when(frame)}which part of the picture is the {chosen.name} in?", f"at the {_ninth(x, y)}")


def there(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """What is in a ninth of the picture, away from its borders, where nothing else is near."""
    centres = [(o, o.centre(frame or 0)) for o in _shown(objects, frame)]
    alone = [
        (o, (x, y))
        for o, (x, y) in centres
        if all(o is other or max(abs(x - u), abs(y - v)) > 0.3 for other, (u, v) in centres) and not _between(x, y)
    ]
    if not alone:
        return None
    chosen, (x, y) = rng.choice(alone)
    return Turn("there", f"{when(frame)}what is in the {_ninth(x, y)}?", chosen.name)


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
    """Which way an object of a clip moves that is there in most of it."""
    chosen = rng.choice(objects)
    axis = rng.randrange(2)
    moved = chosen.centre(-1)[axis] - chosen.centre(0)[axis]
    if chosen.event == "appear" or abs(moved) < 0.15:
        return None
    words = (("left", "right"), ("up", "down"))[axis]
    question = f"does the {chosen.name} move {words[0]} or {words[1]}?"
    return Turn("motion", question, words[moved > 0])


def event(rng: random.Random, objects: list[Object], frame: int | None) -> Turn:
    """What happens to an object of a clip."""
    chosen = rng.choice(objects)
    wording = rng.choice(("what happens to the {}?", "what does the {} do?"))
    return Turn("event", wording.format(chosen.name), HAPPENS[chosen.event])


def region(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """Where an object is: the answer ends in a box."""
    if not (shown := _shown(objects, frame)):
        return None
    chosen = rng.choice(shown)
    question = when(frame) + rng.choice(REGION_WORDINGS).format(chosen.name)
    return Turn("region", question, REGION_ANSWER, [chosen.boxes_xyxy[frame or 0]], _time(frame))


def given(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """Which object is in a box that the user gives, in the words of `there`."""
    return _given(rng, objects, frame, "given", "what is in {}?", "name")


def given_colour(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """Which colour it has."""
    return _given(rng, objects, frame, "given_colour", "what colour is the object in {}?", "colour")


def given_shape(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """Which shape it has."""
    return _given(rng, objects, frame, "given_shape", "what shape is the object in {}?", "shape")


def _given(
    rng: random.Random, objects: list[Object], frame: int | None, kind: str, wording: str, attribute: str
) -> Turn | None:
    if not (shown := _shown(objects, frame)):
        return None
    chosen = rng.choice(shown)
    question = when(frame) + wording.format(PLACEHOLDER)
    return Turn(kind, question, getattr(chosen, attribute), [chosen.boxes_xyxy[frame or 0]], _time(frame))


def moment(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """When something happens to an object of a clip: the answer ends in its moments."""
    if not (active := [o for o in objects if o.event]):
        return None
    chosen = rng.choice(active)
    assert chosen.event is not None
    question = rng.choice(MOMENT_WORDINGS[chosen.event]).format(chosen.name)
    return Turn("moment", question, MOMENT_ANSWER, spans_s=chosen.spans_s)


def outline(rng: random.Random, objects: list[Object], frame: int | None) -> Turn:
    """Which pixels of a picture an object covers: the answer ends in a mask."""
    chosen = rng.choice(objects)
    return Turn("outline", rng.choice(OUTLINE_WORDINGS).format(chosen.name), MASK_ANSWER, masks=chosen.masks)


def follow(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """Where an object of a clip is in each frame; in the first it is to be seen in its own colour."""
    if not (shown := _shown(objects, 0)):
        return None
    chosen = rng.choice(shown)
    return Turn("follow", rng.choice(FOLLOW_WORDINGS).format(chosen.name), MASK_ANSWER, masks=chosen.masks)


def follow_given(rng: random.Random, objects: list[Object], frame: int | None) -> Turn | None:
    """The same of an object whose box in the first frame the user gives."""
    if not (shown := _shown(objects, 0)):
        return None
    chosen = rng.choice(shown)
    question = rng.choice(FOLLOW_GIVEN_WORDINGS)
    return Turn("follow_given", question, MASK_ANSWER, masks=chosen.masks, first_box=chosen.boxes_xyxy[0])


def _time(frame: int | None) -> float | None:
    return None if frame is None else CLIP_TIMES[frame]


CHAT = {f.__name__: f for f in (colour, shape, count, exists, relation, side, place, there, size)}
CLIP_CHAT = {f.__name__: f for f in (colour, exists, relation, side, place, there, motion, event)}
TASKS = {f.__name__: f for f in (region, given, given_colour, given_shape)}
CLIP_TASKS = {**TASKS, "moment": moment}
MASKS = {f.__name__: f for f in (outline, follow, follow_given)}
KINDS: dict[str, Callable[..., Turn | None]] = {**CHAT, **CLIP_CHAT, **CLIP_TASKS, **MASKS}


def ask(rng: random.Random, objects: list[Object], kinds: dict[str, float], num_turns: int, clip: bool) -> list[Turn]:
    """Up to `num_turns` different questions about one scene, of kinds drawn by weight.

    Each box, and each moment, comes at most once in a kind.
    """
    names, weights = list(kinds), list(kinds.values())
    turns: dict[str, Turn] = {}
    for kind in rng.choices(names, weights, k=4 * num_turns):
        turn = KINDS[kind](rng, objects, rng.choice(ASKED_FRAMES) if clip else None)
        if turn is not None:
            wanted = turn.boxes or turn.spans_s
            turns.setdefault(f"{turn.kind} {wanted}" if wanted else turn.question, turn)
        if len(turns) == num_turns:
            break
    return list(turns.values())


def all_texts() -> list[str]:
    """Every wording with every filling, for building a vocabulary."""
    rng = random.Random(0)
    texts = [*COLOURS, *SHAPES, *NUMBERS, *_ROWS, *_COLUMNS, "small", "medium", "large", REGION_ANSWER]
    texts += [text.format("") for wordings in MOMENT_WORDINGS.values() for text in wordings]
    texts += [*HAPPENS.values(), TASK_WORDS]
    still = [[0.1, 0.1, 0.3, 0.3]] * len(CLIP_TIMES)
    moved = [[0.6, 0.6, 0.8, 0.8]] * (len(CLIP_TIMES) - 1)
    seen = [True] * len(CLIP_TIMES)
    turning = Object("blue", "square", still[:1] + moved, "turn", [[1.0, 2.0]], seen)
    objects = [Object("red", "circle", still, shown=seen), turning]
    for make in {**CHAT, **CLIP_CHAT, **CLIP_TASKS}.values():  # the words of MASKS are all among TASK_WORDS and these
        for frame in [None, *ASKED_FRAMES]:
            turns = (make(rng, objects, frame) for _ in range(40))
            texts += [f"{turn.question} {turn.answer}" for turn in turns if turn is not None]
    return texts
