"""Masks of the world, what tracks are worth, and the micro SAM 2."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tpo_head_mask import rle
from tpo_head_mask.checkpoints import build_backend
from tpo_head_mask.config import MaskConfig
from tpo_head_mask.masks import box_of
from tpo_shapes import outlines
from tpo_shapes.baselines import of_heads
from tpo_shapes.dataset import make_dataset
from tpo_shapes.evaluate import Answer, Question, read_questions
from tpo_shapes.micro_sam import ARCHITECTURE, follow, loss_of, make_batch, roughly, train_micro_sam
from tpo_shapes.outlines import draw_track, filled, filled_tracks, film_track, score_masks
from tpo_shapes.questions import ASKED_FRAMES
from tpo_shapes.world import CLIP_TIMES, EVENTS, RGB, masks, render, sample_backgrounds, sample_scenes

from tpo_plugin.data import stream_video


def test_a_mask_is_where_the_shape_is_drawn():
    rng = np.random.default_rng(0)
    scenes = sample_scenes(rng, 60, CLIP_TIMES, max_objects=3)
    frames, covered = render(rng, scenes, sample_backgrounds(rng, 60, "train")), masks(scenes)
    assert np.array_equal(covered.any((-1, -2)), scenes.shown())
    assert covered.sum(2).max() == 1, "shapes never touch"
    for event in range(-1, len(EVENTS)):
        scene, slot = np.argwhere((scenes.event == event) & (scenes.colour >= 0))[0]
        for frame in np.flatnonzero(scenes.shown()[scene, :, slot]):
            own = frames[scene, frame][covered[scene, frame, slot]].mean(0) / 255
            assert np.abs(own - RGB[scenes.colour[scene, slot]]).max() < 0.12
            assert np.array(box_of(covered[scene, frame, slot])) == pytest.approx(
                scenes.boxes_xyxy[scene, frame, slot], abs=0.016
            )


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    files = make_dataset(tmp_path_factory.mktemp("data"), "heldout", 4, seed=8, num_clips=6)
    return [question for question in read_questions(files.values()) if question.wanted == "mask"]


def true_track(question):
    nothing = rle.encode(np.zeros((96, 96), bool))
    times = CLIP_TIMES[: len(question.masks)]
    return {"masks": [mask or nothing for mask in question.masks], "times": list(times)}


def test_questions_about_masks_hold_what_is_wanted_and_given(questions):
    assert {question.kind for question in questions} == {"outline", "follow", "follow_given"}
    for question in questions:
        assert len(question.masks) == (len(CLIP_TIMES) if question.clip else 1)
        assert question.masks[0] is not None, "it is to be seen in the first frame"
        assert (question.first_box is not None) == (question.kind == "follow_given") == ("<mask>" in question.text)
        if question.first_box is not None:
            assert box_of(rle.decode(question.masks[0])) == pytest.approx(question.first_box, abs=0.016)


def test_scores_of_tracks(questions):
    answers = {
        "perfect": [Answer("", track=true_track(question)) for question in questions],
        "nothing": [Answer("")] * len(questions),
    }
    found = score_masks(questions, answers)
    assert all(kind["J&F"] == kind["called"] == 1 for kind in found["perfect"].values())
    assert sum(kind["num"] for kind in found["perfect"].values()) == len(questions)
    assert all(kind["called"] == 0 and kind["J"] < 0.5 for kind in found["nothing"].values())


def test_the_filled_box_follows_the_region_heads_answers(questions, monkeypatch):
    asked = []

    def answer(model, given):
        asked.extend(given)
        sides = {None: 0.1, **{CLIP_TIMES[frame]: 0.1 * number for number, frame in enumerate(ASKED_FRAMES)}}
        return [Answer("", [[sides[q.time], 0.2, sides[q.time] + 0.4, 0.6]]) for q in given]

    monkeypatch.setattr(outlines, "answer_questions", answer)
    kinds = ("outline", "follow", "follow_given")
    picture, clip, box = (next(q for q in questions if q.kind == kind) for kind in kinds)
    tracks = filled_tracks(None, [picture, clip, box])
    name = " ".join(clip.text.rstrip(".").split()[-2:])
    assert [q.text for q in asked[1:]] == [f"at {t} seconds, where is the {name}?" for t in (0.5, 1.5, 2.5, 3.5)]
    assert tracks[0]["masks"] == [filled([0.1, 0.2, 0.5, 0.6])]
    between = CLIP_TIMES.index(1.0)
    assert tracks[1]["masks"][between] == filled([0.05, 0.2, 0.45, 0.6])
    assert tracks[1]["masks"][0] == filled([0.0, 0.2, 0.4, 0.6])
    assert tracks[2]["masks"] == [filled(box.first_box)] * len(CLIP_TIMES)
    monkeypatch.setattr(outlines, "answer_questions", lambda model, given: [Answer("no")] * len(given))
    assert filled_tracks(None, [picture]) == [None]


def test_a_filled_box_has_the_pixels_whose_centre_it_holds():
    mask = rle.decode(filled([0.25, 0.5, 0.5, 0.76], size=4))
    assert np.argwhere(mask).tolist() == [[2, 1]]


def test_a_track_is_drawn_on_a_picture_and_on_every_frame_of_a_clip(questions, tmp_path):
    picture = next(q for q in questions if q.kind == "outline")
    assert draw_track(picture, None).size == (outlines.SIDE, outlines.SIDE)
    assert draw_track(picture, true_track(picture)).tobytes() != draw_track(picture, None).tobytes()
    clip = next(q for q in questions if q.kind == "follow")
    paths = [film_track(clip, track, tmp_path / f"{n}.mp4", 240) for n, track in enumerate((true_track(clip), None))]
    frames = [np.stack([frame for _, frame in stream_video(path)]).astype(int) for path in paths]
    assert frames[0].shape == (len(CLIP_TIMES), 192, 192, 3)
    there = np.array([mask is not None for mask in clip.masks])
    differ = (np.abs(frames[0] - frames[1]).max(-1) > 40).sum((1, 2)) > 100  # the codec leaves traces of less
    assert (differ == there).all()


def test_a_baselines_records_have_no_masks(tmp_path):
    files = make_dataset(tmp_path, "train", 6, seed=3, num_clips=4)
    for key in ("tasks", "clip_tasks"):
        for record in map(json.loads, files[key].read_text().splitlines()):
            plain = of_heads(record, heads=("region", "temporal"))
            values = [line["value"] for line in plain["conversations"]]
            assert values[0].startswith("<image>\n")
            assert sum(value.count("<image>") for value in values) == 1
            assert not any("<mask>" in value for value in values)
            assert len(values) == 2 * len(plain["kinds"])
            assert plain["tasks"] == [task for task in record["tasks"] if task["head"] != "mask"]


def test_rough_boxes_stay_boxes():
    torch.manual_seed(0)
    boxes = torch.tensor([[0.4, 0.4, 0.6, 0.7]]).repeat(500, 1)
    moved = roughly(boxes)
    assert (moved[:, 2:] > moved[:, :2]).all()
    assert ((moved >= 0) & (moved <= 1)).all()
    assert (moved - boxes).mean(0).abs().max() < 0.01
    assert 0.01 < (moved - boxes).std() < 0.1


@pytest.mark.slow
def test_the_micro_sam_learns_and_its_file_is_a_checkpoint(tmp_path):
    path = train_micro_sam(tmp_path / "sam.safetensors", (2, 1, 1), seed=0)
    assert [file.name for file in tmp_path.iterdir()] == ["sam.safetensors"]
    config = MaskConfig(**ARCHITECTURE, checkpoint=str(path))
    sam = build_backend(config)
    assert len(config.checkpoint_sha256) == 64
    state = load_file(path)
    assert all(torch.equal(value.bfloat16(), state[name]) for name, value in sam.model.state_dict().items())
    batch = make_batch(np.random.default_rng(0), 2, 2, sample_backgrounds(np.random.default_rng(0), 4, "train"))
    assert batch.masks[:, 0].flatten(1).any(1).all()
    optimizer = torch.optim.Adam(sam.requires_grad_(True).parameters(), 1e-3)
    losses = []
    for _ in range(8):
        loss = loss_of(follow(sam, batch), batch.masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_question_without_masks_is_not_one():
    assert Question("a.png", "colour", "what colour is the circle?", "red").wanted is None
