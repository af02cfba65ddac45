"""Crowds, the questions about them, and the comparison of the two ways to many boxes."""

import json

import numpy as np
import pytest
from tpo_shapes import many
from tpo_shapes.baselines import iou
from tpo_shapes.crowds import MOST, RADIUS, sample_crowds
from tpo_shapes.host import build_tokenizer
from tpo_shapes.many import HEADS, NAMES, NOTHING, NUMBERS, WORDINGS, Size, boxes_named, make_questions
from tpo_shapes.questions import objects_of
from tpo_shapes.world import COLOURS, SHAPES, render

TINY = Size(num_scenes=12, steps=(1, 2), batch_size=4, asked=1, timed=1)


def test_a_crowd_has_as_many_of_a_name_as_are_wanted():
    wanted = [(name, number) for name in NAMES for number in NUMBERS if name or number]
    scenes = sample_crowds(np.random.default_rng(0), wanted)
    totals = []
    for index, (name, number) in enumerate(wanted):
        objects = objects_of(scenes, index)
        totals.append(len(objects))
        assert len(boxes_named(objects, name)) == number
        assert max(1, number) <= len(objects) <= MOST
        boxes = np.array([thing.boxes_xyxy[0] for thing in objects])
        assert (boxes >= 0).all()
        assert (boxes <= 1).all()
        radii = (boxes[:, 2:] - boxes[:, :2]) / 2
        assert RADIUS[0] - 1e-3 < radii.min() <= radii.max() < RADIUS[1] + 1e-3
        overlaps = iou(boxes[:, None], boxes[None])
        assert (overlaps[~np.eye(len(boxes), dtype=bool)] == 0).all(), "none touch"
    assert len(set(totals)) > 5, "any number of others"


def test_all_twenty_are_drawn():
    scenes = sample_crowds(np.random.default_rng(1), [("", MOST)])
    frame = render(np.random.default_rng(0), scenes, np.full((1, 96, 96, 3), 0.5, np.float32))[0, 0]
    for thing in objects_of(scenes, 0):
        x, y = (round(96 * value) for value in thing.centre(0))
        assert np.abs(frame[y, x].astype(int) - 128).max() > 20


def test_the_host_knows_all_words():
    tokenizer = build_tokenizer()
    texts = [text.format(name) for text in WORDINGS for name in (*SHAPES, *COLOURS)] + [NOTHING, "it is here"]
    assert tokenizer.unk_token_id not in tokenizer(" ".join(texts))["input_ids"]


def test_both_heads_are_asked_the_same(tmp_path):
    make_questions(tmp_path, "train", [0, 1, 3, 8, 20] * 4, seed=0)
    texts = [(tmp_path / f"{head}.jsonl").read_text(encoding="utf-8") for head in HEADS]
    first, second = ([json.loads(line) for line in text.splitlines()] for text in texts)
    assert len(first) == len(second) == 20
    for a, b in zip(first, second, strict=True):
        assert (tmp_path / a["image"]).is_file()
        assert json.loads(json.dumps(a).replace('"region"', '"region_set"').replace("<region>", "<region_set>")) == b
        boxes = iter(a.get("tasks", []))
        for question, answer in zip(a["conversations"][::2], a["conversations"][1::2], strict=True):
            assert "objects" in question["value"]
            if answer["value"] != NOTHING:
                found = next(boxes)["boxes"]
                assert found
                assert found == sorted(found), "from left to right"
        assert next(boxes, None) is None
    answers = [turn["value"] for record in first for turn in record["conversations"][1::2]]
    assert NOTHING in answers


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_of_a_few_steps(tmp_path):
    result = many.run(tmp_path, TINY, seed=0)
    rows = many.table([result])
    assert [row[:2] for row in rows[1:]] == [(str(number), head) for number in NUMBERS for head in HEADS]
    assert json.loads(json.dumps(result)) == result


def test_the_table_of_two_seeds():
    def result(recall, ms):
        numbers = {str(n): {"F1_score": 0.5, "ms": ms} | ({"recall": recall} if n else {"N-acc": 1.0}) for n in NUMBERS}
        return {"seed": 0, "heads": {head: {"numbers": numbers} for head in HEADS}}

    header, *rows = many.table([result(0.5, 10.0), result(1.0, 21.0)])
    assert header == ("objects", "head", "recall", "precision", "F1", "F1_score", "N-acc", "ms")
    assert rows[0] == ("0", "region", "-", "-", "-", "50.0", "100.0", "16")
    assert rows[-1] == ("20", "region_set", "75.0", "-", "-", "50.0", "-", "16")
