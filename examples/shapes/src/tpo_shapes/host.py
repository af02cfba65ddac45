"""The host: a small LLaVA-OneVision of transformers with its real processor and a word tokenizer of its own."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from tpo_shapes.questions import PLACEHOLDER, all_texts
from tpo_shapes.world import CLIP_TIMES

IMAGE_SIZE = 48
PATCH_SIZE = 8
SPARE_ROWS = 16

PAD, UNKNOWN, USER, ASSISTANT, END = "<|pad|>", "<|unk|>", "<|user|>", "<|assistant|>", "<|end|>"
IMAGE, VIDEO = "<image>", "<video>"
SPECIAL = (PAD, UNKNOWN, USER, ASSISTANT, END, IMAGE, VIDEO)

CHAT_TEMPLATE = (
    "{%- macro render(content) -%}"
    "{%- if content is string -%}{{- content -}}"
    "{%- else -%}"
    "{%- for part in content -%}"
    "{%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- else -%}<{{- part['type'] -}}>{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- endmacro -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "<|assistant|>{%- generation -%}{{- render(message['content']) -}}<|end|>{%- endgeneration -%}"
    "{%- else -%}<|user|>{{- render(message['content']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)

_PUNCTUATION = r"[?!,;:\[\]()]|\.(?!\d)"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: the words of every question, numbers from 0 to 100, punctuation. Lower case."""
    texts = " ".join(all_texts()).replace(PLACEHOLDER, " ").lower()
    words = set(re.sub(f"({_PUNCTUATION})", r" \1 ", texts).split())
    words |= {str(number) for number in range(101)} | set("?!.,:[]")
    words |= {"a", "an", "of", "on", "this", "object", "shape", "picture", "image", "video", "please", "thing"}
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(_PUNCTUATION), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, IMAGE, VIDEO],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_processor() -> LlavaOnevisionProcessor:
    """The real processor for pictures of one tile: 78 tokens a picture, 9 tokens a frame and one a clip."""
    pixels = {
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    image_processor = LlavaOnevisionImageProcessor(image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE]], **pixels)
    return LlavaOnevisionProcessor(
        image_processor=image_processor,
        video_processor=LlavaOnevisionVideoProcessor(num_frames=len(CLIP_TIMES), **pixels),
        tokenizer=build_tokenizer(),
        num_image_tokens=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, width: int = 64, num_layers: int = 4, vision_layers: int = 3
) -> LlavaOnevisionForConditionalGeneration:
    """A fresh model for the tokenizer, with spare vocabulary rows."""
    torch.manual_seed(seed)
    vocab_size = -(-(len(tokenizer) + SPARE_ROWS) // 64) * 64
    shape = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": 4,
    }
    vision = SiglipVisionConfig(
        image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, vision_use_head=False, num_hidden_layers=vision_layers, **shape
    )
    text = Qwen2Config(
        vocab_size=vocab_size,
        num_hidden_layers=num_layers,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.08,
        use_sliding_window=False,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_id=tokenizer.convert_tokens_to_ids(VIDEO),
        image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE]],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    with torch.no_grad():
        modules = dict(model.named_modules())
        table = next(m for name, m in modules.items() if name.endswith("embeddings.position_embedding"))
        table.weight.copy_(0.5 * grid_positions(IMAGE_SIZE // PATCH_SIZE, width))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = None
    return model


def grid_positions(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of row and column, [side * side, width]."""
    angles = torch.arange(side)[:, None] / 10 ** (torch.arange(width // 4) / (width // 4) * 2)
    waves = torch.cat([angles.sin(), angles.cos()], 1)  # [side, width / 2]
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], -1).reshape(side * side, width)


def build_host(
    directory: str | Path, seed: int = 0
) -> tuple[LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor]:
    """Writes an untrained host and its processor to a directory and returns both."""
    processor = build_processor()
    model = build_model(processor.tokenizer, seed)
    save_host(directory, model, processor)
    return model, processor


def save_host(
    directory: str | Path, model: LlavaOnevisionForConditionalGeneration, processor: LlavaOnevisionProcessor
) -> None:
    """Writes model and processor, loadable by AutoModelForImageTextToText and AutoProcessor."""
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
