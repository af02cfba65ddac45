"""The host: pretraining's fast path is the real processor and the real model; directories load back."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from tpo_shapes.host import build_host
from tpo_shapes.packing import Packer, image_prefix, video_prefix
from tpo_shapes.pool import make_pool
from tpo_shapes.questions import CHAT, CLIP_CHAT, all_texts, ask
from tpo_shapes.world import CLIP_TIMES, render, sample_backgrounds, sample_scenes
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
        assert tokenizer.unk_token_id not in tokenizer(text.replace("<region>", ""))["input_ids"], text
    assert model.config.text_config.vocab_size >= len(tokenizer) + 16


def test_template_marks_the_answers(host):
    processor = host[1]
    messages = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "two"}]
    out = processor.tokenizer.apply_chat_template(
        messages, chat_template=processor.chat_template, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = [token for token, mark in zip(out["input_ids"], out["assistant_masks"], strict=True) if mark]
    assert processor.tokenizer.convert_ids_to_tokens(marked) == ["two", "<|end|>"]
