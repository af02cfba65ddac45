"""What the masks of a demo's answers are worth, and what they are compared with: the region head's boxes, filled, and
the same SAM 2 prompted by the true box.

N questions, F frames.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tpo_head_mask import rle
from tpo_head_mask.inputs import Medium
from tpo_head_mask.masks import box_of
from tpo_head_mask.metrics import AnswerScores, mask_at

from tpo_shapes.evaluate import Answer, Question, answer_questions
from tpo_shapes.questions import ASKED_FRAMES, MASKS, REGION_WORDINGS, Box, Mask, when
from tpo_shapes.world import CLIP_SECONDS, CLIP_TIMES, PICTURE_SIZE

if TYPE_CHECKING:
    from PIL.Image import Image

FILLED, BOUND = "filled box", "true box"
Track = dict[str, Any]
SIDE = 192
"""Of a drawn frame, in pixels."""


def score_masks(questions: Sequence[Question], answers: Mapping[str, Sequence[Answer]]) -> dict[str, dict[str, Any]]:
    """By the name of who answered, for each kind of question about masks: "num"; "called", the share of answers with
    masks; "J&F", "J" and "F", all from 0 to 1."""
    return {name: {kind: _score(questions, given, kind) for kind in MASKS} for name, given in answers.items()}


def _score(questions: Sequence[Question], answers: Sequence[Answer], kind: str) -> dict[str, Any]:
    scores, called = AnswerScores(), []
    for question, answer in zip(questions, answers, strict=True):
        if question.kind == kind:
            truth = {"masks": question.masks, "times": list(CLIP_TIMES[: len(question.masks)])}
            scores.add([answer.track] if answer.track else [], [truth])
            called.append(answer.track is not None)
    return {"num": len(called), "called": float(np.mean(called)) if called else None, **scores.mean()}


def compare_masks(model: Any, questions: Sequence[Question], path: Path) -> None:
    """Writes what the masks of a run's own answers are compared with, `FILLED` and `BOUND`."""
    wanted = [question for question in questions if question.wanted == "mask"]
    compared = {FILLED: filled_tracks(model, wanted), BOUND: bound_tracks(model, wanted)}
    path.write_text(json.dumps(compared) + "\n", encoding="utf-8")


def load_compared(path: Path, questions: Sequence[Question]) -> dict[str, list[Answer]]:
    """What `compare_masks` wrote for these questions: by name an answer to each, empty where no mask is wanted."""
    tracks = {name: iter(found) for name, found in json.loads(path.read_text(encoding="utf-8")).items()}
    return {
        name: [Answer("", track=next(found) if question.wanted == "mask" else None) for question in questions]
        for name, found in tracks.items()
    }


def filled_tracks(model: Any, questions: Sequence[Question]) -> list[Track | None]:
    """The region head's box of the same object, filled; in a clip the boxes of the four moments that its questions can
    name, with straight lines between them; where the user gives a box, that one in every frame."""
    asked = [(number, q) for number, question in enumerate(questions) for q in _as_region(question)]
    answers = answer_questions(model, [question for _, question in asked])
    boxes: list[dict[float, Box]] = [{} for _ in questions]
    for (number, question), answer in zip(asked, answers, strict=True):
        if answer.boxes:
            boxes[number][question.time or 0.0] = answer.boxes[0]
    tracks: list[Track | None] = []
    for question, found in zip(questions, boxes, strict=True):
        found = {0.0: question.first_box} if question.first_box else found
        times = CLIP_TIMES[: len(question.masks)]
        tracks.append(_filled(found, times) if found else None)
    return tracks


def _as_region(question: Question) -> list[Question]:
    """The questions about boxes that stand for one about masks, whose last two words name the object."""
    if question.first_box is not None:
        return []
    ask = REGION_WORDINGS[0].format(" ".join(question.text.rstrip(".").split()[-2:]))
    frames = ASKED_FRAMES if question.clip else [None]
    return [
        Question(question.media, "region", when(frame) + ask, "", time=None if frame is None else CLIP_TIMES[frame])
        for frame in frames
    ]


def _filled(boxes: dict[float, Box], times: Sequence[float]) -> Track:
    known = sorted(boxes)
    sides = np.array([boxes[time] for time in known])
    lines = np.stack([np.interp(times, known, sides[:, side]) for side in range(4)], 1)
    return {"masks": [filled(box) for box in lines.tolist()], "times": list(times)}


def filled(box_xyxy: Box, size: int = PICTURE_SIZE) -> Mask:
    """All pixels whose centre is in a box."""
    x1, y1, x2, y2 = box_xyxy
    centres = (np.arange(size) + 0.5) / size
    return rle.encode(((centres >= y1) & (centres < y2))[:, None] & ((centres >= x1) & (centres < x2)))


def bound_tracks(model: Any, questions: Sequence[Question]) -> list[Track | None]:
    """What the mask head's SAM 2 finds when the true box of the first frame prompts it: the upper bound."""
    head = model.tpo.heads["mask"]
    tracks: list[Track | None] = [None] * len(questions)
    order = sorted(range(len(questions)), key=lambda number: questions[number].media)
    for path, group in groupby(order, key=lambda number: questions[number].media):
        numbers = list(group)
        firsts = [mask for number in numbers for mask in questions[number].masks[:1] if mask is not None]
        assert len(firsts) == len(numbers), "a question about masks is of an object that its first frame shows"
        boxes = torch.tensor([box_of(rle.decode(mask)) for mask in firsts])
        rows = torch.zeros(len(numbers), dtype=torch.long)
        with torch.no_grad():
            outputs = head.from_boxes(boxes, {"media": [_medium(path)]}, rows)
        for number, value in zip(numbers, head.postprocess(outputs), strict=True):
            tracks[number] = {key: value[key] for key in ("masks", "times")}
    return tracks


def _medium(path: str) -> Medium:
    from tpo_plugin.data import read_image

    return Medium(video=path) if path.endswith(".mp4") else Medium(image=np.asarray(read_image(path)))


def draw_track(question: Question, track: Track | None) -> Image:
    """The picture with the found mask and the true one's outline."""
    from tpo_head_mask.drawing import draw_masks

    from tpo_plugin.data import read_image

    masks = [_enlarged(mask) for mask in (mask_at(track, 0.0) if track else None, question.masks[0])]
    return draw_masks(read_image(question.media).resize((SIDE, SIDE)), masks[:1], masks[1:])


def film_track(question: Question, track: Track | None, path: Path, side: int) -> Path:
    """Writes the clip, so many pixels wide, with the found masks, the true ones' outlines, and a box that is given."""
    from tpo_head_mask.drawing import draw_video

    from tpo_plugin.data import stream_video

    times = list(CLIP_TIMES[: len(question.masks)])
    true: Track = {"times": times, "masks": question.masks}
    if question.first_box is not None:
        true["boxes"] = [question.first_box] + [None] * (len(times) - 1)
    found = [track] if track else []
    return draw_video(path, stream_video(question.media), found, [true], end_s=CLIP_SECONDS, least_side=side)


def _enlarged(mask: Mask | None) -> np.ndarray | None:
    pixels = None if mask is None else rle.decode(mask)
    return None if pixels is None else pixels.repeat(SIDE // len(pixels), 0).repeat(SIDE // len(pixels), 1)
