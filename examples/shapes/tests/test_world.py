"""The task world: pictures show what the boxes say, records are well formed, seeds decide everything."""

import itertools
import json
import random
import re

import numpy as np
import pytest
from tpo_shapes.dataset import make_dataset, saliency
from tpo_shapes.questions import CHAT, CLIP_CHAT, CLIP_TASKS, HAPPENS, NUMBERS, TASKS, ask, objects_of
from tpo_shapes.world import (
    CLIP_SECONDS,
    CLIP_TIMES,
    COLOURS,
    EVENTS,
    PHOTOS,
    RGB,
    render,
    sample_backgrounds,
    sample_scenes,
)


def test_shapes_fill_their_boxes():
    rng = np.random.default_rng(0)
    scenes = sample_scenes(rng, 16)
    empty = np.full((16, 96, 96, 3), 0.5, np.float32)
    frames = render(rng, scenes, empty)
    for index in range(16):
        drawn = np.abs(frames[index, 0].astype(int) - 128).max(-1) > 20
        inside = np.zeros_like(drawn)
        for x0, y0, x1, y1 in (scenes.boxes_xyxy[index, 0, scenes.colour[index] >= 0] * 96).tolist():
            rows, columns = np.nonzero(drawn[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1])
            assert abs(np.ptp(columns) + 1 - (x1 - x0)) <= 3
            assert abs(np.ptp(rows) + 1 - (y1 - y0)) <= 4
            inside[max(int(y0) - 1, 0) : int(y1) + 2, max(int(x0) - 1, 0) : int(x1) + 2] = True
        assert not (drawn & ~inside).any()


@pytest.mark.parametrize("times", [None, CLIP_TIMES])
def test_objects_differ_and_never_touch(times):
    scenes = sample_scenes(np.random.default_rng(1), 200, times)
    for index in range(200):
        objects = objects_of(scenes, index)
        assert len({o.name for o in objects}) == len(objects) >= 2
        for a, b in ((a, b) for a in objects for b in objects if a is not b):
            for p, q in zip(a.boxes_xyxy, b.boxes_xyxy, strict=True):
                assert max(p[0] - q[2], q[0] - p[2], p[1] - q[3], q[1] - p[3]) > 0
        assert all(0 <= v <= 1 for o in objects for box in o.boxes_xyxy for v in box)


def test_clips_show_what_their_moments_say():
    """In each frame the middle of a shape has the colour that the moments say, or that of the background."""
    rng = np.random.default_rng(5)
    scenes = sample_scenes(rng, 60, CLIP_TIMES, max_objects=3)
    frames = render(rng, scenes, np.full((60, 96, 96, 3), 0.5, np.float32))
    seen = dict.fromkeys([*EVENTS, None], 0)
    for index, objects in enumerate(objects_of(scenes, index) for index in range(60)):
        for thing in objects:
            seen[thing.event] += 1
            assert bool(thing.event) == bool(thing.spans_s)
            for frame, time_s in enumerate(CLIP_TIMES):
                inside = any(start <= time_s < end for start, end in thing.spans_s)
                x, y = (round(96 * value) for value in thing.centre(frame))
                pixel = frames[index, frame, min(y, 95), min(x, 95)] / 255
                colour = COLOURS[np.abs(RGB - pixel).max(-1).argmin()] if np.abs(pixel - 0.5).max() > 0.05 else None
                away = {"appear": not inside, "leave": inside}.get(thing.event, False)
                assert colour == (None if away else thing.colour)
                assert thing.shown[frame] == (not away)
                left, _, right, bottom = thing.boxes_xyxy[frame]
                if thing.event == "turn" and thing.shape == "triangle" and bottom < 0.95:  # not on the bar
                    corner = frames[index, frame, int(96 * bottom) - 3, int(96 * left + 96 * (right - left) / 8)] / 255
                    assert (np.abs(corner - 0.5).max() < 0.05) == inside  # a hanging triangle has no foot there
    assert min(seen.values()) > 5


def test_moments_are_apart_and_inside_the_clip():
    scenes = sample_scenes(np.random.default_rng(6), 300, CLIP_TIMES, max_objects=3)
    counts = []
    for thing in (thing for index in range(300) for thing in objects_of(scenes, index) if thing.event):
        counts.append(len(thing.spans_s))
        times = [0.0, *(value for span in thing.spans_s for value in span), CLIP_SECONDS]
        assert times == sorted(times)
        assert all(later - end >= 1 for (_, end), (later, _) in itertools.pairwise(thing.spans_s))
        assert all(0.5 <= end - start <= 1.5 for start, end in thing.spans_s)
        assert 1 <= sum(end - start for start, end in thing.spans_s) <= 1.5
        assert (sum(thing.shown) <= 3) == (thing.event == "appear")
    assert set(counts) == {1, 2}


def test_no_two_shapes_of_a_clip_have_the_same_event_or_name():
    scenes = sample_scenes(np.random.default_rng(8), 300, CLIP_TIMES, max_objects=3)
    for objects in (objects_of(scenes, index) for index in range(300)):
        events = [thing.event for thing in objects if thing.event]
        assert len(set(events)) == len(events)
        assert ("circle", "turn") not in [(thing.shape, thing.event) for thing in objects]
        assert len({thing.name for thing in objects}) == len(objects)


def test_pictures_have_no_events():
    scenes = sample_scenes(np.random.default_rng(7), 50)
    assert (scenes.event == -1).all()
    assert scenes.shown().sum() == (scenes.colour >= 0).sum()


def test_saliency_marks_the_frames_of_the_moments():
    marks = saliency([[0.5, 1.5], [3.0, 4.0]])
    assert marks == {"saliency": [0, 12, 12, 0, 0, 0, 12, 12], "clip_s": 0.5}


def test_splits_share_no_photograph():
    assert not set(PHOTOS["train"]) & set(PHOTOS["heldout"])
    assert sample_backgrounds(np.random.default_rng(0), 3, "heldout").std() > 0.005


def at(turn):
    """The frame that a question names."""
    named = re.match(r"at ([\d.]+) seconds", turn.question)
    return CLIP_TIMES.index(float(named[1])) if named else 0


@pytest.mark.parametrize("clip", [False, True])
def test_answers_are_true(clip):
    rng = random.Random(0)
    scenes = sample_scenes(np.random.default_rng(2), 100, CLIP_TIMES if clip else None)
    for index in range(100):
        objects = objects_of(scenes, index)
        kinds = [*CLIP_CHAT, *CLIP_TASKS] if clip else [*CHAT, *TASKS]
        for turn in ask(rng, objects, dict.fromkeys(kinds, 1.0), 12, clip):
            named = [o for o in objects if o.name in turn.question]
            frame = CLIP_TIMES.index(turn.time) if turn.time is not None else 0
            if turn.kind == "exists":
                assert turn.answer == ("yes it is here" if named else "no it is not here")
            elif turn.kind == "region":
                assert turn.boxes == [named[0].boxes_xyxy[frame]]
                assert named[0].shown[frame]
            elif turn.kind == "moment":
                assert turn.spans_s == named[0].spans_s != []
                assert turn.answer == "at <temporal>"
            elif turn.kind == "event":
                assert turn.answer == HAPPENS[named[0].event]
            elif turn.kind == "count":
                assert turn.answer == NUMBERS[len(objects)]
            elif turn.kind == "there":
                x, y = next(o for o in objects if o.name == turn.answer).centre(at(turn))
                row, column = turn.question.removesuffix("?").split()[-2:]
                assert (row == "top", row == "bottom") == (y < 0.38, y > 0.62)
                assert (column == "left", column == "right") == (x < 0.38, x > 0.62)
            elif turn.kind == "given":
                assert [o.name for o in objects if o.boxes_xyxy[frame] == turn.boxes[0]] == [turn.answer]
            elif turn.kind == "given_colour":
                assert [o.colour for o in objects if o.boxes_xyxy[frame] == turn.boxes[0]] == [turn.answer]
            elif turn.kind == "relation" and " left of " in turn.question and not clip:
                first, second = sorted(named, key=lambda o: turn.question.index(o.name))
                assert (turn.answer == "yes") == (first.centre(0)[0] < second.centre(0)[0])


def test_dataset_is_deterministic_and_well_formed(tmp_path):
    files = make_dataset(tmp_path / "a", "train", 6, seed=3, num_clips=2)
    again = make_dataset(tmp_path / "b", "train", 6, seed=3, num_clips=2)
    assert set(files) == {"chat", "tasks", "clip_chat", "clip_tasks"}
    for key, path in files.items():
        assert path.read_bytes() == again[key].read_bytes()
        for record in map(json.loads, path.read_text().splitlines()):
            media = record.get("image") or record["video"]
            assert (tmp_path / "a" / media).read_bytes() == (tmp_path / "b" / media).read_bytes()
            values = [line["value"] for line in record["conversations"]]
            assert values[0].startswith("<image>\n")
            assert values[1::2]
            assert len(values) % 2 == 0
            tasks = record.get("tasks", [])
            for head, placeholder in (("region", "<region>"), ("temporal", "<temporal>")):
                wanted = [task for task in tasks if task["head"] == head]
                assert sum(value.count(placeholder) for value in values) == len(wanted)
            assert all(("time" in task) == ("video" in record) for task in tasks if task["head"] == "region")
            assert all(len(task["saliency"]) == CLIP_SECONDS / task["clip_s"] for task in tasks if "spans" in task)
