"""The mask head on a tiny host: records with images and videos, training, generation, a user's box, saving."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tpo_head_mask import rle

import tpo_plugin as tpo
from tpo_plugin.data import Records, VideoOptions, read_sample
from tpo_plugin.data.collate import collate_tasks
from tpo_plugin.testing import tiny_host

HEIGHT, WIDTH, NUM_FRAMES = 24, 32, 6
MICRO = {"size": "micro", "image_size": 32}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of a bright square that moves to the right, as frames and their list, and its first frame alone."""
    folder = tmp_path_factory.mktemp("media")
    lines = ["ffconcat version 1.0"]
    for t in range(NUM_FRAMES):
        frame = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        frame[mask_at(t)] = 255
        Image.fromarray(frame).save(folder / f"{t}.png")
        lines += [f"file '{t}.png'", "duration 0.5"]
    (folder / "clip.ffconcat").write_text("\n".join(lines))
    return folder


def mask_at(t: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[8:16, 2 + 4 * t : 10 + 4 * t] = True
    return mask


def video_task(frames: range = range(NUM_FRAMES)) -> dict[str, Any]:
    return {"head": "mask", "masks": [rle.encode(mask_at(t)) for t in frames], "times": [0.5 * t for t in frames]}


def make_model(**config: Any) -> Any:
    torch.manual_seed(0)
    settings = tpo.TPOConfig(heads={"mask": {**MICRO, **config}})
    return tpo.apply_tpo(*tiny_host(), heads=["mask"], config=settings)


def read(model: Any, media: Path, *tasks: dict[str, Any], question: str = "where", image: bool = False) -> Any:
    answer = "it stands " + " ".join(["<mask>"] * (len(tasks) - question.count("<mask>")))
    record = {
        "id": "1",
        "image" if image else "video": "0.png" if image else "clip.ffconcat",
        "conversations": [{"from": "human", "value": f"<image> {question}"}, {"from": "gpt", "value": answer}],
        "tasks": list(tasks),
    }
    return read_sample(Records([record], model.tpo, media_root=media)[0], VideoOptions(num_frames=2))


def batch_of(model: Any, samples: list[Any]) -> dict[str, Any]:
    head = model.tpo.heads["mask"]
    turns = [turn for sample in samples for turn in sample.record.turns]
    tasks = [task for turn in turns if turn.role == "assistant" for task in turn.tasks]
    given = [task for turn in turns if turn.role == "user" for task in turn.tasks]
    texts = [" ".join(turn.text.replace("<image>", "") for turn in sample.record.turns) for sample in samples]
    texts = [text.replace("<track_begin><tracking>", " <track_begin> <tracking> ") for text in texts]
    batch = dict(model.tpo.tokenizer(texts, return_tensors="pt", padding=True))
    labels = batch["input_ids"].clone()
    labels[labels == model.tpo.token_ids["mask"][1]] = -100
    inputs = head.collate_inputs(tasks, given, samples)
    return batch | {
        "labels": labels,
        "task_inputs": {"mask": inputs},
        "task_targets": {"mask": head.collate_targets(tasks)} if tasks else None,
    }


def test_a_prompt_that_has_masks_before_its_question_is_about_the_whole_medium(media):
    model = make_model()
    turns = [("human", "<image> where"), ("gpt", "<mask>"), ("human", "and the other"), ("gpt", "<mask>")]
    record = {
        "video": "clip.ffconcat",
        "conversations": [{"from": role, "value": value} for role, value in turns],
        "tasks": [video_task(), video_task()],
    }
    sample = read_sample(Records([record], model.tpo, media_root=media)[0], VideoOptions(num_frames=2))
    prompt = tpo.Sample(sample.record.prompt(), videos=sample.videos)
    _, inputs = collate_tasks(model.tpo.codecs, [prompt], for_generation=True)
    assert len(inputs["mask"]["media"]) == 1
    assert "frame_index" not in inputs["mask"]
    _, inputs = collate_tasks(model.tpo.codecs, [sample])
    assert len(inputs["mask"]["frame_index"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("clip_frames", [1, 4])
def test_a_frozen_sam_is_learned_to_be_prompted(backend_name, media, clip_frames):
    model = make_model(backend=backend_name, clip_frames=clip_frames, losses=["pixel", "prompt"])
    model.requires_grad_(False)
    head = model.tpo.heads["mask"]
    learned = [*head.adapter.parameters(), *head.box_decoder.parameters(), *model.tpo.embeddings.parameters()]
    for parameter in learned:
        parameter.requires_grad_()
    frozen = {name: value.clone() for name, value in head.sam.state_dict().items()}
    batch = batch_of(model, [read(model, media, video_task())])
    optimizer = torch.optim.Adam(learned, 3e-3)
    losses = []
    for _ in range(25):
        out = model.train()(**batch)
        losses.append(out.tpo.losses["mask"].item())
        optimizer.zero_grad()
        out.tpo.losses["mask"].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0], losses
    assert all(torch.equal(frozen[name], value) for name, value in head.sam.state_dict().items())


@pytest.mark.slow
def test_sam_is_trained_from_scratch_and_then_tracks(backend_name, media):
    """The whole micro SAM 2, prompted by the true box on a clip: it then follows the object through the video."""
    model = make_model(backend=backend_name, train="all", clip_frames=4)
    head, sample = model.tpo.heads["mask"], read(model, media, video_task())
    assert not head.trained
    batch = batch_of(model, [sample])
    inputs, targets = batch["task_inputs"]["mask"], batch["task_targets"]["mask"]
    optimizer = torch.optim.Adam(head.sam.parameters(), 1e-3)
    for _ in range(60):
        loss = sum(head.train().loss(head.from_boxes(targets["boxes_xyxy"], inputs), targets, 1).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.sam.parameters(), 1.0)
        optimizer.step()
    assert head.trained
    media_inputs = head.collate_inputs([], [], [sample])
    with torch.no_grad():
        outputs = head.eval().from_boxes(targets["boxes_xyxy"], media_inputs, torch.tensor([0]))
    (value,) = head.postprocess(outputs)
    overlaps = []
    for t, mask in enumerate(value["masks"]):
        found, true = rle.decode(mask), mask_at(t)
        overlaps.append((found & true).sum() / (found | true).sum())
    assert np.mean(overlaps) > 0.6, overlaps
    assert min(value["scores"]) > 0.5


def generated(model: Any, sample: Any, prompt: str = "where is it", **options: Any) -> Any:
    head = model.tpo.heads["mask"]
    given = [task for turn in sample.record.turns if turn.role == "user" for task in turn.tasks]
    inputs = head.collate_inputs([], given, [sample])
    ids = model.tpo.tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        return model.tpo.generate(
            **ids, task_inputs={"mask": inputs}, route="mask", max_new_tokens=8, do_sample=False, **options
        )


def test_an_answer_holds_a_mask_for_every_frame(backend_name, media, caplog):
    model = make_model(backend=backend_name)
    sample = read(model, media, video_task())
    assert len(sample.videos[0].frames) == 2, "the host sees fewer frames than SAM 2 tracks"
    with caplog.at_level(logging.WARNING, logger="tpo_head_mask.head"):
        (predictions,) = generated(model, sample).predictions
    assert "untrained" in caplog.text
    value = predictions[0].value
    assert len(value["masks"]) == NUM_FRAMES
    assert value["times"] == pytest.approx([0.5 * t for t in range(NUM_FRAMES)])
    assert all(mask["size"] == [HEIGHT, WIDTH] for mask in value["masks"])
    assert all(0 <= score <= 1 for score in value["scores"])
    assert predictions[0].head_score == pytest.approx(value["score"])
    plain = predictions[0].to_json()
    assert set(plain["value"]) == set(value) - {"source"}, "what is sent names no file of this machine"
    json.dumps(plain, allow_nan=False)


def test_an_image_gets_one_mask(media):
    model = make_model()
    task = {"head": "mask", "masks": [rle.encode(mask_at(0))]}
    (predictions,) = generated(model, read(model, media, task, image=True)).predictions
    assert predictions[0].value["times"] == [0.0]
    assert rle.decode(predictions[0].value["masks"][0]).shape == (HEIGHT, WIDTH)


def test_several_masks_in_one_answer_and_rows_of_different_media(media):
    model = make_model()
    head = model.tpo.heads["mask"]
    video, image = read(model, media, video_task()), read(model, media, video_task(range(1)), image=True)
    inputs = head.collate_inputs([], [], [video, image])
    outputs = head(torch.randn(3, model.tpo.hidden_size), inputs=inputs, batch_rows=torch.tensor([1, 0, 0]))
    values = head.postprocess(outputs)
    assert [len(value["masks"]) for value in values] == [1, NUM_FRAMES, NUM_FRAMES]
    assert head.score(outputs).shape == (3,)


def test_a_box_of_the_user_goes_into_the_prompt_and_says_where_to_begin(media):
    model = make_model()
    box = {"head": "mask", "box": [0.1, 0.3, 0.3, 0.7], "time": 1.0}
    sample = read(model, media, box, video_task(), question="where is <mask>")
    assert "<track_box>" in sample.record.turns[0].text
    (predictions,) = generated(model, sample, "where is <track_box> it").predictions
    assert predictions[0].value["times"] == pytest.approx([1.0, 1.5, 2.0, 2.5])
    inputs = model.tpo.heads["mask"].collate_inputs([], [box], [sample])
    assert torch.equal(inputs["boxes_xyxy"], torch.tensor([box["box"]]))


def test_a_box_of_the_user_prompts_sam_2_itself_or_through_the_language_model(media):
    box = {"head": "mask", "box": [0.1, 0.3, 0.3, 0.7], "time": 1.0}
    e_ND, rows = torch.randn(3, 64), torch.tensor([0, 1, 1])
    found = {}
    for given_box in ("sam2", "adapter"):
        model = make_model(given_box=given_box)
        head = model.tpo.heads["mask"]
        plain = read(model, media, video_task())
        asked = read(model, media, box, video_task(), video_task(), question="where is <mask>")
        inputs = head.collate_inputs([], [box], [plain, asked])
        assert [medium.boxes_xyxy for medium in inputs["media"]] == [(), ((0.1, 0.3, 0.3, 0.7),)]
        outputs = head(e_ND[:, : model.tpo.hidden_size], inputs=inputs, batch_rows=rows)
        own = head.sam.embed_boxes(torch.tensor([box["box"]]))
        found[given_box] = outputs["prompt_embeddings"]
        assert torch.equal(found[given_box][1], own[0]) == (given_box == "sam2")
        assert [track["times"][0] for track in outputs["tracks"]] == [0.0, 1.0, 1.0]
    # the row without a box, and a second object of the answer to one box
    assert torch.equal(found["sam2"][[0, 2]], found["adapter"][[0, 2]])


def test_only_the_boxes_of_the_last_question_count(media):
    model = make_model()
    first, second = ({"head": "mask", "box": [x, 0.3, 0.5, 0.7], "time": 2 * x} for x in (0.1, 0.25))
    record = {
        "id": "1",
        "video": "clip.ffconcat",
        "conversations": [
            {"from": "human", "value": "<image> where is <mask>"},
            {"from": "gpt", "value": "it stands <mask>"},
            {"from": "human", "value": "where is <mask>"},
            {"from": "gpt", "value": "it stands <mask>"},
        ],
        "tasks": [first, video_task(), second, video_task()],
    }
    sample = read_sample(Records([record], model.tpo, media_root=media)[0], VideoOptions(num_frames=2))
    (medium,) = model.tpo.heads["mask"].collate_inputs([], [first, second], [sample])["media"]
    assert (medium.start_s, medium.boxes_xyxy) == (0.5, ((0.25, 0.3, 0.5, 0.7),))


def test_the_clip_begins_where_the_object_does(media):
    model = make_model(clip_frames=3, losses=["pixel", "prompt"])
    task = video_task()
    task["masks"][:2] = [None, None]
    task["masks"][3] = None
    sample = read(model, media, task)
    targets = model.tpo.heads["mask"].collate_targets([task])
    assert [bool(mask.any()) for mask in targets["masks"][0]] == [True, False, True]
    assert targets["boxes_xyxy"][0].tolist() == pytest.approx([10 / 32, 8 / 24, 18 / 32, 16 / 24])
    inputs = batch_of(model, [sample])["task_inputs"]["mask"]
    assert inputs["frame_index"] == [[0, 1, 2]]
    bright = (inputs["frames"][:, 0] > 127).any(1).float().argmax(1)  # first column of the square
    assert bright.tolist() == [10, 14, 18]


def test_a_frame_that_the_clip_has_is_not_read_again(media, monkeypatch):
    model = make_model(clip_frames=3)
    sample = read(model, media, video_task())
    shown = [time_s for time_s in (0.0, 0.5, 1.0) if time_s in sample.videos[0].times_s.tolist()]
    assert shown
    expected = batch_of(model, [sample])["task_inputs"]["mask"]["frames"]
    asked: list[list[float]] = []
    read_frames = tpo.read_frames
    monkeypatch.setattr(tpo, "read_frames", lambda path, times: asked.append(times) or read_frames(path, times))
    frames = batch_of(model, [sample])["task_inputs"]["mask"]["frames"]
    assert sorted(shown + asked[0]) == [0.0, 0.5, 1.0]
    bright = (frames[:, 0] > 127).any(1).float().argmax(1)
    assert bright.tolist() == [2, 6, 10]
    assert torch.equal(frames, expected)


def test_boxes_alone_train_the_prompt(media):
    model = make_model(losses=["pixel", "prompt"])
    task = {"head": "mask", "boxes": [None, [0.1, 0.2, 0.5, 0.6]], "times": [0.0, 0.5]}
    out = model.train()(**batch_of(model, [read(model, media, task)]))
    assert out.tpo.losses["mask"] > 0
    only_masks = make_model()
    with pytest.raises(tpo.RecordError, match=r"boxes: .*losses \['pixel'\] cannot learn from"):
        read(only_masks, media, task)


def test_a_mask_of_another_size_than_its_video_is_named(media):
    model = make_model()
    task = {"head": "mask", "masks": [rle.encode(np.ones((10, 12), dtype=bool))], "times": [0.0]}
    with pytest.raises(tpo.MediaError, match="a mask is 12 x 10 pixels, its video 32 x 24; expected the same size"):
        batch_of(model, [read(model, media, task)])


def test_an_empty_mask_png_is_named(media):
    model = make_model(losses=["prompt"])
    Image.fromarray(np.zeros((HEIGHT, WIDTH), dtype=np.uint8)).save(media / "empty.png")
    task = {"head": "mask", "masks": ["empty.png"]}
    with pytest.raises(tpo.MediaError, match="is an empty mask; write null"):
        batch_of(model, [read(model, media, task, image=True)])


def test_a_video_that_changes_its_frame_size_is_named(media, tmp_path):
    model = make_model()
    for t, size in enumerate([(32, 24), (32, 24), (40, 24)]):
        Image.new("RGB", size).save(tmp_path / f"{t}.png")
    text = "\n".join(["ffconcat version 1.0", *(f"file '{t}.png'\nduration 0.5" for t in range(3))])
    (tmp_path / "clip.ffconcat").write_text(text)
    sample = read(model, media, video_task())
    inputs = model.tpo.heads["mask"].collate_inputs([], [], [sample])
    moved = [type(inputs["media"][0])(video=str(tmp_path / "clip.ffconcat"))]
    with pytest.raises(tpo.MediaError, match=r"that at 1\.000 s is 40 x 24, those before are 32 x 24"):
        model.tpo.heads["mask"](
            torch.randn(1, model.tpo.hidden_size), inputs={"media": moved}, batch_rows=torch.tensor([0])
        )


def test_missing_frames_are_named():
    model = make_model()
    with pytest.raises(tpo.TPOError, match=r"1 task token\(s\) and task_inputs\['mask'\] has no frames"):
        model.tpo.heads["mask"](torch.randn(1, model.tpo.hidden_size), inputs={}, batch_rows=torch.tensor([0]))


def test_metrics_on_a_clip(media):
    model = make_model(clip_frames=3)
    head = model.tpo.heads["mask"]
    batch = batch_of(model, [read(model, media, video_task())])
    with torch.no_grad():
        out = model.eval()(**batch)
    metrics = head.metrics()
    metrics.update(out.tpo.outputs["mask"], batch["task_targets"]["mask"])
    assert {"J&F", "J", "F"} <= metrics.compute().keys()


def test_a_cache_of_embeddings_spares_the_image_encoder(media, tmp_path):
    model = make_model(cache_dir=str(tmp_path / "cache"), clip_frames=3)
    sample = read(model, media, video_task())
    first_batch = batch_of(model, [sample])
    assert first_batch["task_inputs"]["mask"]["features"] is None
    first = model.train()(**first_batch).tpo.losses["mask"]
    head = model.tpo.heads["mask"]
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3
    again = batch_of(model, [sample])
    assert len(again["task_inputs"]["mask"]["frames"]) == 0
    head.sam.encode = None  # not called
    assert torch.equal(model(**again).tpo.losses["mask"], first)


@pytest.mark.parametrize("train", ["nothing", "decoder", "all"])
def test_what_is_frozen_and_what_trains(train):
    model = make_model(train=train)
    head = model.tpo.heads["mask"]
    learns = {name for name, p in head.sam.named_parameters() if p.requires_grad}
    everything = {name for name, _ in head.sam.named_parameters()}
    if train == "decoder":
        assert learns
        assert all("mask_decoder" in name and "conv_s" not in name for name in learns)
    else:
        assert learns == (everything if train == "all" else set())
