"""Records of the shapes world in the sentences of a chat model, in the three forms that are compared.

"tpo" says a box by the region head, behind words; "bare" is a placeholder without words, for a host that nothing
trains; "text" writes coordinates as Qwen3-VL does, whole numbers of 0 to 1000 in JSON.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tpo_shapes.dataset import write_records
from tpo_shapes.questions import CHAT, Object, ask, objects_of, place
from tpo_shapes.world import render, sample_backgrounds, sample_scenes

FORMS = ("tpo", "text", "bare")
CHAT_TURNS, MIXED_TURNS = 8, 2
"""Questions of a conversation alone, and of each kind in a record with boxes."""
WHERE = (
    "Where is the {}?",
    "Find the {}.",
    "Point at the {}.",
    "Locate the {}.",
    "Show me the {}.",
    "Where can I see the {}?",
)
LIST = ("Where is everything?", "List all objects with their boxes.", "Show me all the objects.")
DESCRIBE = ("What do you see?", "Describe the picture.")
_BOX = re.compile(r'"bbox_2d": \[(\d+), (\d+), (\d+), (\d+)\]')

Said = tuple[str, str, list[list[float]]]
"""A question, its answer, and the boxes of the answer's placeholders."""


def write_world(folder: Path, split: str, number: int, seed: int) -> None:
    """Pictures of a split ("train" or "heldout") and the files chat, describe, and for each form lists and mixed.

    A record of `mixed` has questions for boxes and others. The same arguments give the same files.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    scenes = sample_scenes(rng, number)
    frames = render(rng, scenes, sample_backgrounds(rng, number, split))
    files: dict[str, list[dict[str, Any]]] = {}
    for index in range(number):
        name = f"images/{index:06d}.png"
        Image.fromarray(frames[index, 0]).save(folder / name, compress_level=1)
        objects = objects_of(scenes, index)
        for file, said in _conversations(f"{seed} {index}", objects).items():
            files.setdefault(file, []).append(make_record(f"{file}-{seed}-{index}", name, said))
    for file, records in files.items():
        write_records(folder / f"{file}.jsonl", records)


def _conversations(seed: str, objects: list[Object]) -> dict[str, list[Said]]:
    rng = random.Random(seed)
    talk = [chat_turn(turn.question, turn.answer) for turn in ask(rng, objects, dict.fromkeys(CHAT, 1.0), 8, False)]
    shown = rng.sample(objects, len(objects))
    described: list[Said] = [(rng.choice(DESCRIBE), sentence(", ".join(_described(rng, o) for o in shown)), [])]
    wordings = [rng.choice(WHERE) for _ in shown]
    listing = rng.choice(LIST)
    order = rng.sample(range(2 * MIXED_TURNS), 2 * MIXED_TURNS)
    found = {"chat": talk[:CHAT_TURNS], "describe": described + talk[: CHAT_TURNS - 1]}
    for form in FORMS:
        asked = [where_turn(wording, o, form) for wording, o in zip(wordings, shown, strict=True)][:MIXED_TURNS]
        both = asked + talk[: 2 * MIXED_TURNS - len(asked)]
        found[f"mixed_{form}"] = [both[at] for at in order if at < len(both)]
        if form != "bare":
            found[f"lists_{form}"] = [list_turn(listing, shown, form)]
    return found


def _described(rng: random.Random, thing: Object) -> str:
    """An object with its place, where that is plain."""
    said = place(rng, [thing], None)
    return f"a {thing.name}" + (f" {said.answer}" if said else "")


def chat_turn(question: str, answer: str) -> Said:
    """A question of conversation as a sentence."""
    return sentence(question), sentence(answer), []


def where_turn(wording: str, thing: Object, form: str) -> Said:
    """A question for the box of one object."""
    box = thing.boxes_xyxy[0]
    answers = {"tpo": f"The {thing.name} is here: <region>.", "bare": "<region>", "text": as_text([thing])}
    return wording.format(thing.name), answers[form], [] if form == "text" else [box]


def list_turn(question: str, things: Sequence[Object], form: str) -> Said:
    """A question for the boxes of all objects."""
    if form == "text":
        return question, as_text(things), []
    named = ", ".join(f"a {thing.name}: <region>" for thing in things)
    return question, sentence(named), [thing.boxes_xyxy[0] for thing in things]


def sentence(text: str) -> str:
    """With a capital letter and a full stop, where it has no other end."""
    return text[:1].upper() + text[1:] + ("" if text[-1:] in ".?!" else ".")


def as_text(things: Sequence[Object]) -> str:
    """Boxes as Qwen3-VL writes them."""
    found = [{"bbox_2d": [round(1000 * v) for v in thing.boxes_xyxy[0]], "label": thing.name} for thing in things]
    return json.dumps(found)


def box_of_text(text: str) -> list[float] | None:
    """The first box of an answer in that form, 0 to 1; None of an answer without one."""
    found = _BOX.search(text)
    return [int(number) / 1000 for number in found.groups()] if found else None


def make_record(identifier: str, picture: str, said: Sequence[Said]) -> dict[str, Any]:
    """One record: the picture is shown before the first question."""
    conversations: list[dict[str, str]] = []
    for question, answer, _ in said:
        mark = "" if conversations else "<image>\n"
        conversations += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
    tasks = [{"head": "region", "boxes": [box]} for *_, boxes in said for box in boxes]
    record = {"id": identifier, "image": picture, "conversations": conversations}
    return record | ({"tasks": tasks} if tasks else {})


def general_record(identifier: str, prompt: str, answer: str) -> dict[str, Any]:
    """One without a picture."""
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    return {"id": identifier, "conversations": turns}


def write_general(path: Path, prompts: Sequence[str], answers: Sequence[str]) -> None:
    """The language model's own answers as records; an empty one is left out."""
    pairs = [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer]
    write_records(path, (general_record(f"general-{index}", *pair) for index, pair in enumerate(pairs)))
