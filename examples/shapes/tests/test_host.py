"""The host: pretraining's fast path is the real processor and the real model; directories load back."""

import copy
import random

import numpy as np
import pytest
import torch
from PIL import Image
from tpo_shapes.host import build_host
from tpo_shapes.packing import Packer, image_prefix, video_prefix, vision_features
from tpo_shapes.pool import make_pool, normalise
from tpo_shapes.pretrain import spread_frames
from tpo_shapes.questions import CHAT, CLIP_CHAT, Turn, all_texts, ask
from tpo_shapes.world import CLIP_TIMES, COLOURS, SHAPES, render, sample_backgrounds, sample_scenes
from transformers import AutoModelForImageTextToText, AutoProcessor


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    directory = tmp_path_factory.mktemp("host")
    build_host(directory)
    return AutoModelForImageTextToText.from_pretrained(directory).eval(), AutoProcessor.from_pretrained(directory)


@pytest.mark.parametrize("clip", [False, True])
def test_packing_equals_the_processor(host, clip):
    model, processor = host
    pools = (make_pool(1, 4, "train"), make_pool(2, 4, "train", clip=True))
    rng = np.random.default_rng(1 + clip)
    scenes = sample_scenes(rng, 4, CLIP_TIMES if clip else None, max_objects=3 if clip else 4)
    frames = render(rng, scenes, sample_backgrounds(rng, 4, "train"))[0]
    kinds = dict.fromkeys(CLIP_CHAT if clip else CHAT, 1.0)
    turns = ask(random.Random(0), pools[clip].objects[0], kinds, 3, clip)
    packer = Packer(processor.tokenizer, image_prefix(model.config), video_prefix(model.config))
    rows, talks = [[], []], [[], []]
    rows[clip], talks[clip] = [0], [turns]
    batch = packer.pack(pools, rows, talks)
    messages = []
    for turn in turns:
        content = [{"type": "text", "text": turn.question}]
        if not messages:
            content.insert(0, {"type": "video" if clip else "image"})
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": turn.answer}]
    media = {"videos": [frames]} if clip else {"images": [Image.fromarray(frames[0])]}
    inputs = processor(text=[processor.apply_chat_template(messages)], return_tensors="pt", **media)
    assert torch.equal(inputs["input_ids"], batch.ids_BT)
    with torch.no_grad():
        mine = model.lm_head(batch.forward(model)[0])
        real = model(**inputs).logits.flatten(0, 1)[batch.positions]
    torch.testing.assert_close(mine, real, atol=1e-4, rtol=1e-4)


def test_tokenizer_knows_every_word(host):
    model, processor = host
    tokenizer = processor.tokenizer
    for text in all_texts():
        words = text.replace("<region>", "").replace("<temporal>", "")
        assert tokenizer.unk_token_id not in tokenizer(words)["input_ids"], text
    assert model.config.text_config.vocab_size >= len(tokenizer) + 16


def test_template_marks_the_answers(host):
    processor = host[1]
    messages = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "two"}]
    out = processor.tokenizer.apply_chat_template(
        messages, chat_template=processor.chat_template, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = [token for token, mark in zip(out["input_ids"], out["assistant_masks"], strict=True) if mark]
    assert processor.tokenizer.convert_ids_to_tokens(marked) == ["two", "<|end|>"]


def test_labels_say_what_a_frame_shows():
    pool = make_pool(3, 40, "train", clip=True)
    things = pool.present.sum((0, 1))
    assert (things[[COLOURS.index(c) * 3 + 12 for c in COLOURS]] == 0).all()  # circles do not turn
    assert (things > 0).sum() > 12
    turned = pool.present[..., 12:].any(-1)
    assert turned.any()
    for index, objects in enumerate(pool.objects):
        for frame, time_s in enumerate(CLIP_TIMES):
            named = set()
            for thing in objects:
                inside = any(start <= time_s < end for start, end in thing.spans_s)
                if {"appear": not inside, "leave": inside}.get(thing.event, False):
                    continue
                thing_id = COLOURS.index(thing.colour) * 3 + SHAPES.index(thing.shape)
                named.add(thing_id + 12 * (thing.event == "turn" and inside))
            assert set(pool.present[index, frame].nonzero()[:, 0].tolist()) == named
            assert set(pool.classes[index, frame].tolist()) <= named | {24}


def test_a_question_without_an_answer_ends_a_conversation(host):
    model, processor = host
    pools = (make_pool(1, 2, "train"), make_pool(2, 2, "train", clip=True))
    packer = Packer(processor.tokenizer, image_prefix(model.config), video_prefix(model.config))
    talk = [Turn("count", "how many objects are there?", "two"), Turn("moment", "when is the circle gone?", "")]
    batch = packer.pack(pools, [[], [0]], [[], [talk]])
    text = processor.tokenizer.convert_ids_to_tokens(batch.ids_BT[0])
    assert text[-7:] == ["when", "is", "the", "circle", "gone", "?", "<|assistant|>"]
    assert processor.tokenizer.convert_ids_to_tokens(batch.targets) == ["two", "<|end|>"]
    asked = processor.tokenizer.convert_ids_to_tokens(batch.ids_BT.flatten()[batch.asked()])
    assert asked == ["how", "many", "objects", "are", "there", "?", "when", "is", "the", "circle", "gone", "?"]


def test_features_of_frames_are_spread_and_the_answers_stay(host):
    model, processor = host
    model = copy.deepcopy(model)
    pool = make_pool(4, 6, "train", clip=True)
    packer = Packer(processor.tokenizer, image_prefix(model.config), video_prefix(model.config))
    turns = ask(random.Random(0), pool.objects[0], {"motion": 1.0, "event": 1.0}, 2, clip=True)
    batch = packer.pack((pool, pool), [[], [0]], [[], [turns]])
    with torch.no_grad():
        before = batch.forward(model)[0]
        spread_frames(model, pool)
        seen = vision_features(model, normalise(pool.pixels.flatten(0, 1)))[1]
        assert torch.equal(batch.forward(model)[0], before)
    torch.testing.assert_close(seen.mean(0), torch.zeros(seen.shape[1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.ones(seen.shape[1]), atol=1e-3, rtol=0)
