"""The task world: pictures show what the boxes say, records are well formed, seeds decide everything."""

import json
import random

import numpy as np
import pytest
from tpo_shapes.dataset import make_dataset
from tpo_shapes.questions import CHAT, CLIP_CHAT, TASKS, ask, objects_of
from tpo_shapes.world import CLIP_TIMES, PHOTOS, render, sample_backgrounds, sample_scenes


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


def test_splits_share_no_photograph():
    assert not set(PHOTOS["train"]) & set(PHOTOS["heldout"])
    assert sample_backgrounds(np.random.default_rng(0), 3, "heldout").std() > 0.005


@pytest.mark.parametrize("clip", [False, True])
def test_answers_are_true(clip):
    rng = random.Random(0)
    scenes = sample_scenes(np.random.default_rng(2), 100, CLIP_TIMES if clip else None)
    for index in range(100):
        objects = objects_of(scenes, index)
        for turn in ask(rng, objects, dict.fromkeys([*(CLIP_CHAT if clip else CHAT), *TASKS], 1.0), 8, clip):
            named = [o for o in objects if o.name in turn.question]
            frame = CLIP_TIMES.index(turn.time) if turn.time is not None else 0
            if turn.kind == "exists":
                assert turn.answer == ("yes" if named else "no")
            elif turn.kind == "region":
                assert turn.boxes == [named[0].boxes_xyxy[frame]]
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
            assert sum(value.count("<region>") for value in values) == len(tasks)
            assert all(("time" in task) == ("video" in record) for task in tasks)
