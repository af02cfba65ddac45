"""Conversations with tasks and media, and real processors with small tokenizers that encode them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from tpo_plugin.data.media import VideoClip
from tpo_plugin.data.records import parse_record

Make = Callable[..., Any]
BOX, BOXES = (
    {"head": "region", "boxes": [[0.1, 0.2, 0.3, 0.4]]},
    {"head": "region", "boxes": [[0, 0, 1, 1], [0, 0, 0.5, 1]]},
)
POINT = {"head": "point", "xy": [0.5, 0.25]}

# Each answer starts with a blank that the prompt for generation lacks, as those of Idefics3 and SmolVLM do.
BLANK_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% elif c['type'] == 'video' %}VIDEO{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def llava(make: Make) -> Any:
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return transformers.LlavaProcessor(
        images,
        make(["<image>"]),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML.replace("IMAGE", "<image>"),
    )


def llava_onevision(make: Make) -> Any:
    size = {"height": 28, "width": 28}
    grid = [[28, 28], [28, 56], [56, 28], [56, 56]]
    return transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grid),
        make(["<image>", "<video>"]),
        transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=CHATML.replace("IMAGE", "<image>").replace("VIDEO", "<video>"),
    )


def qwen2_vl(make: Make) -> Any:
    pixels = {"min_pixels": 28 * 28, "max_pixels": 4 * 28 * 28}
    parts = {}
    if hasattr(transformers, "Qwen2VLVideoProcessor"):
        parts["video_processor"] = transformers.Qwen2VLVideoProcessor(**pixels)
    plain = make(["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"])
    tokenizer = transformers.Qwen2TokenizerFast(
        tokenizer_object=plain._tokenizer, pad_token="<pad>", eos_token="</s>", unk_token=None
    )
    return transformers.Qwen2VLProcessor(
        transformers.Qwen2VLImageProcessor(**pixels),
        tokenizer,
        **parts,
        chat_template=CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>").replace(
            "VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"
        ),
    )


def idefics3(make: Make) -> Any:
    if not hasattr(transformers, "Idefics3Processor"):
        pytest.skip("this transformers has no Idefics3")
    images = transformers.Idefics3ImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    tokenizer = make(["<image>", "<fake_token_around_image>", "<global-img>"])
    return transformers.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=BLANK_TEMPLATE)


PROCESSORS = {"llava": llava, "llava_onevision": llava_onevision, "qwen2_vl": qwen2_vl, "idefics3": idefics3}
TAKES_VIDEO = ("llava_onevision", "qwen2_vl")


def record(tpo: Any, *texts: str, tasks: Any = (), **media: Any) -> Any:
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return parse_record({"id": "r", "conversations": turns, "tasks": list(tasks), **media}, tpo, file="f.json", line=7)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def clip(num_frames: int = 4) -> VideoClip:
    frames = np.random.default_rng(1).integers(0, 255, (num_frames, 30, 40, 3), dtype=np.uint8)
    return VideoClip(frames, np.arange(num_frames) * 0.5, num_frames * 0.5)


def labelled(tpo: Any, batch: dict[str, Any], row: int) -> str:
    return tpo.tokenizer.decode(batch["labels"][row][batch["labels"][row] != -100])
