"""The temporal head on a small LLaVA-OneVision: features of its own vision tower and of its text, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

import tpo_plugin as tpo
from tpo_plugin.data import Record, RecordDataset, Records, Sample, TPOCollator, VideoClip, parse_record

pytestmark = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="transformers 5 wrote the host of examples/shapes"
)

HOST = Path(__file__).resolve().parents[3] / "examples/shapes/src/tpo_shapes/weights"
SMALL = {
    "hidden": 32,
    "num_heads": 4,
    "feed_forward": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "cross_layers": 1,
    "dummy_layers": 1,
    "num_dummies": 4,
    "num_queries": 4,
}


def load(**options: Any) -> Any:
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(HOST)
    config = tpo.TPOConfig(heads={"temporal": SMALL | options})
    return tpo.apply_tpo(model, AutoProcessor.from_pretrained(HOST), heads=["temporal"], config=config)


@pytest.fixture(scope="module")
def model() -> Any:
    return load()


def record(name: str, spans: list[list[float]], question: str = "When is the red square there?") -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<video>\n{question}"}, {"from": "gpt", "value": "It is there <temporal>."}]
    task = {"head": "temporal", "spans": spans}
    return {"id": name, "video": f"{name}.mp4", "conversations": turns, "tasks": [task]}


def sample(model: Any, name: str, span: list[float], times_s: list[float], duration_s: float) -> Sample:
    """A grey clip with a red square in a span of time."""
    frames = np.full((len(times_s), 48, 48, 3), 40, np.uint8)
    for frame, time_s in zip(frames, times_s, strict=True):
        if span[0] <= time_s < span[1]:
            frame[10:38, 10:38] = (220, 30, 30)
    clip = VideoClip(frames, np.array(times_s), duration_s)
    return Sample(parse_record(record(name, [span]), model.tpo), (), (clip,))


EVEN = [0.25 + 0.5 * i for i in range(8)]
UNEVEN = [0.0, 0.1, 0.2, 2.0, 2.5, 3.0, 6.0, 9.0]


def test_times_and_features_come_from_the_forward_that_happens_anyway(model):
    calls: list[int] = []
    tower = next(m for n, m in model.named_modules() if n.endswith("vision_tower"))
    handle = tower.register_forward_hook(lambda *_: calls.append(1))
    batch = TPOCollator(model.tpo)([sample(model, "a", [1, 2], EVEN, 4.0), sample(model, "b", [2, 5], UNEVEN, 10.0)])
    outputs = model(**batch).tpo.outputs["temporal"]
    handle.remove()
    assert len(calls) == 1
    torch.testing.assert_close(outputs["times_s"], torch.tensor([EVEN, UNEVEN]), atol=1e-5, rtol=1e-5)
    assert outputs["frame_mask"].sum().item() == 16
    assert (outputs["word_mask"].sum(-1) > 3).all()  # the question's words and the task token


def test_the_questions_words_are_their_input_embeddings():
    model = load(text="words", normalise=False)
    collator = TPOCollator(model.tpo)
    batch = collator([sample(model, "a", [1, 2], EVEN, 4.0)])
    given: list[torch.Tensor] = []
    model.tpo.heads["temporal"].network.register_forward_pre_hook(lambda _, args: given.append(args[2].detach()))
    with torch.no_grad():
        model(**batch)
    ids = model.tpo.tokenizer("When is the red square there?").input_ids
    torch.testing.assert_close(given[0][0, :-1], model.get_input_embeddings().weight[ids])


def test_the_loss_reaches_the_host(model):
    model.train().zero_grad()
    batch = TPOCollator(model.tpo)([sample(model, "a", [1, 2], EVEN, 4.0), sample(model, "b", [2, 5], UNEVEN, 10.0)])
    model(**batch).tpo.losses["temporal"].backward()
    for part in ("vision_tower", "language_model"):
        gradients = [p.grad for n, p in model.named_parameters() if part in n and p.grad is not None]
        assert sum(float(g.abs().sum()) for g in gradients) > 0, part
    missing = [n for n, p in model.tpo.heads.named_parameters() if p.grad is None]
    assert not missing
    model.zero_grad()


class OtherHead(tpo.TaskHead):
    """Any other head."""

    def __init__(self, config: tpo.HeadConfig, hidden_size: int) -> None:
        super().__init__()
        self.proj = tpo.Linear(hidden_size, 1)

    def forward(self, e_ND):
        return {"value": self.proj(e_ND)}

    def loss(self, outputs, targets, num_targets):
        return {"loss_other": outputs["value"].square().sum() / num_targets}


@pytest.fixture
def other():
    plugin = ModuleType("other_plugin")
    plugin.register_heads = tpo.hookimpl(
        lambda register: register("other", head=OtherHead, trigger="<other_begin>", task_token="<other_task>"),
        specname="register_heads",
    )
    tpo.register_plugin(plugin, "other")
    yield "other"
    tpo.unregister_plugin("other")


@pytest.mark.parametrize(("given", "weight"), [({}, 0.05), ({"temporal": 0.5}, 0.5)])
def test_the_published_weight_beside_another_head(other, given, weight):
    torch.manual_seed(0)
    host = LlavaOnevisionForConditionalGeneration.from_pretrained(HOST)
    config = tpo.TPOConfig(loss_weights=given, heads={"temporal": SMALL})
    model = tpo.apply_tpo(host, AutoProcessor.from_pretrained(HOST), heads=["temporal", other], config=config)
    out = model(**TPOCollator(model.tpo)([sample(model, "a", [1, 2], EVEN, 4.0)]))
    losses = out.tpo.losses
    assert losses["temporal"] > 10
    expected = losses["mllm"] + losses["assign"] + losses["other"] + weight * losses["temporal"]
    torch.testing.assert_close(out.loss, expected)


def test_alone_its_weight_is_one(model):
    out = model(**TPOCollator(model.tpo)([sample(model, "a", [1, 2], EVEN, 4.0)]))
    torch.testing.assert_close(out.loss, sum(out.tpo.losses.values()))


def test_generation_gives_spans_inside_the_video(model, tmp_path):
    samples = [sample(model, "a", [1, 2], EVEN, 4.0), sample(model, "b", [2, 5], UNEVEN, 10.0)]
    batch = TPOCollator(model.eval().tpo, for_generation=True)(samples)
    found = model.tpo.generate(**batch, route="temporal", max_new_tokens=8, do_sample=False).predictions
    for (prediction,), given in zip(found, samples, strict=True):
        clip = given.videos[0]
        spans_s = prediction.value["spans_s"]
        assert spans_s.shape == (4, 2)
        assert ((spans_s >= 0) & (spans_s <= clip.duration_s)).all()
        assert prediction.value["times_s"].tolist() == pytest.approx(clip.times_s.tolist(), abs=1e-5)
        assert 0 <= prediction.head_score <= 1
        plain = prediction.to_units(width=48, height=48, duration=clip.duration_s)
        assert json.loads(json.dumps(model.tpo.heads["temporal"].to_json(plain)))["spans_s"] == spans_s.tolist()
        path = model.tpo.heads["temporal"].draw_video(clip, [prediction.value], tmp_path / given.record.id)
        assert path.suffix == ".png"
        with Image.open(path) as picture:
            assert picture.size[0] > 200


def test_one_frame_and_a_picture(model):
    """A video of one frame is answered; a question about a picture gets no span."""
    short = sample(model, "a", [0, 1], [0.0], 1.0)
    batch = TPOCollator(model.eval().tpo, for_generation=True)([short])
    ((prediction,),) = model.tpo.generate(**batch, route="temporal", max_new_tokens=6, do_sample=False).predictions
    assert (prediction.value["spans_s"] <= 1).all()
    assert prediction.value["saliency"].shape == (1,)
    turns = [{"from": "human", "value": "<image>\nWhen is it there?"}]
    data = {"id": "1", "image": "a.png", "conversations": turns}
    picture = Sample(parse_record(data, model.tpo, open_ended=True), (Image.new("RGB", (48, 48)),), ())
    batch = TPOCollator(model.tpo, for_generation=True)([picture])
    ((prediction,),) = model.tpo.generate(**batch, route="temporal", max_new_tokens=6, do_sample=False).predictions
    assert prediction.value["spans_s"].shape == (0, 2)


def test_a_span_behind_the_video_is_a_counted_skip(model, tmp_path, monkeypatch):
    def read(record: Record, video: Any, image: Any) -> Sample:
        return Sample(record, (), (VideoClip(np.zeros((2, 8, 8, 3), np.uint8), np.array([0.0, 1.0]), 4.0),))

    monkeypatch.setattr("tpo_plugin.data.dataset.read_sample", read)
    records = Records([record("good", [[1, 2]]), record("late", [[7, 9]])], model.tpo)
    dataset = RecordDataset([records], max_bad_share=0.5)
    assert [dataset[i].record.id for i in range(2)] == ["good", "good"]
    (skipped,) = dataset.skipped
    assert skipped.id == "late"
    assert "spans[0] is [7, 9], behind the end of its video, which lasts 4.000 s" in skipped.reason


def test_saved_and_loaded(model, tmp_path):
    model.eval().tpo.save_pretrained(tmp_path)
    loaded = tpo.load_tpo(LlavaOnevisionForConditionalGeneration.from_pretrained(HOST), tmp_path).eval()
    batch = TPOCollator(model.tpo)([sample(model, "a", [1, 2], EVEN, 4.0)])
    with torch.no_grad():
        before, after = (m(**batch).tpo.outputs["temporal"] for m in (model, loaded))
    assert torch.equal(before["spans_s"], after["spans_s"])
