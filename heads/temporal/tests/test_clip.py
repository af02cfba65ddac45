"""Features of a frozen CLIP inside the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tpo_head_temporal.config import TemporalConfig
from tpo_head_temporal.encoder import FrozenEncoder
from tpo_head_temporal.head import TemporalHead
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

import tpo_plugin as tpo
from tpo_plugin.data import Record, Sample, Turn, VideoClip
from tpo_plugin.testing import tiny_host

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "when": 4, "does": 5, "it": 6, "jump": 7}
SMALL = {"hidden": 16, "num_heads": 2, "feed_forward": 16, "encoder_layers": 1, "num_dummies": 2, "num_queries": 3}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = SIZES | {"vocab_size": 9, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    vision = SIZES | {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    sizes: dict[str, Any] = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPImageProcessor(**sizes).save_pretrained(folder)
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    return str(folder)


def sample(num_frames: int, question: str, *tasks: dict[str, Any]) -> Sample:
    frames = np.random.default_rng(num_frames).integers(0, 255, (num_frames, 20, 24, 3), dtype=np.uint8)
    turns = (Turn("user", f"<video>\n{question}"), Turn("assistant", "Then.", tasks))
    video = VideoClip(frames, np.arange(num_frames) * 1.0, float(num_frames))
    return Sample(Record("7", "records.jsonl:3", turns, (), (Path("a.mp4"),)), (), (video,))


def build(clip: str, **options: Any) -> TemporalHead:
    torch.manual_seed(0)
    return TemporalHead(TemporalConfig(features="clip", clip=clip, **SMALL, **options), 8)


def test_features_are_the_encoders(clip):
    head = build(clip).train()
    assert not any(module.training for module in head.clip.modules())
    samples = [sample(4, "when does it jump"), sample(3, "when")]
    rows = head.collate_inputs([], [], samples)
    given, _ = head._given(torch.zeros(2, 8), rows, torch.tensor([0, 1]))
    encoder = FrozenEncoder(clip)
    for i, s in enumerate(samples):
        expected = torch.nn.functional.normalize(encoder.frames(s.videos[0].frames), dim=-1)
        torch.testing.assert_close(given["video"][i, : len(expected)], expected, atol=1e-4, rtol=1e-4)
        words = torch.nn.functional.normalize(encoder.words(s.record.turns[0].text.removeprefix("<video>\n")), dim=-1)
        assert rows["num_words"][i] == len(words)
        torch.testing.assert_close(given["words"][i, : len(words)], words, atol=1e-4, rtol=1e-4)


def test_it_trains_and_the_encoder_stays(clip):
    head = build(clip).train()
    task = {"head": "temporal", "spans": [[1, 2]]}
    inputs = head.collate_inputs([task], [], [sample(4, "when does it jump", task), sample(3, "when")])
    assert inputs["num_clips"].tolist() == [4, 0]
    outputs = head(torch.randn(1, 8, requires_grad=True), inputs=inputs, batch_rows=torch.tensor([0]))
    sum(head.loss(outputs, head.collate_targets([task]), 1).values()).backward()
    trained = {name for name, p in head.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in head.named_parameters() if not name.startswith("clip.")}


def test_a_question_that_is_too_long(clip):
    """In a prompt an error, in training a counted skip, as of every `MediaError`."""
    head, task = build(clip), {"head": "temporal", "spans": [[0, 1]]}
    long = sample(2, "when does it jump when does it", task)
    for call in (lambda: head.collate_inputs([], [], [long]), lambda: head.check_sample([task], long)):
        with pytest.raises(tpo.MediaError, match="jsonl:3: the question has 9 tokens of the CLIP, which takes 8"):
            call()


def test_questions_of_two_answers_are_refused(clip):
    tasks = [{"head": "temporal", "spans": [[0, 1]]} for _ in range(2)]
    turns = [t for task in tasks for t in (Turn("user", "When?"), Turn("assistant", "Then.", (task,)))]
    video = sample(4, "when").videos[0]
    both = Sample(Record("7", "records.jsonl:3", tuple(turns), (), (Path("a.mp4"),)), (), (video,))
    with pytest.raises(tpo.TPOError, match="temporal tasks in 2 answers"):
        build(clip).collate_inputs(tasks, [], [both])


def test_saved_without_the_encoder(clip, tmp_path):
    config = tpo.TPOConfig(heads={"temporal": {"features": "clip", "clip": clip, **SMALL}})
    model = tpo.apply_tpo(*tiny_host(), heads=["temporal"], config=config)
    model.tpo.save_pretrained(tmp_path)
    assert sum(f.stat().st_size for f in tmp_path.glob("*.safetensors")) < 200_000
    loaded = tpo.load_tpo(*[tiny_host()[0], tmp_path, tiny_host()[1]])
    for name, value in model.tpo.state_dict().items():
        assert torch.equal(loaded.tpo.state_dict()[name], value), name
    assert loaded.tpo.heads["temporal"].config.clip_sha256 == FrozenEncoder(clip).fingerprint
    with pytest.raises(tpo.TPOError, match="the head was trained with 123"):
        build(clip, clip_sha256="123")
