"""Templates of the structure that families of hosts publish: what is trained is what is asked, token for token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from chats import BOX, Make, labelled, record

from tpo_plugin.data.collate import TPOCollator
from tpo_plugin.data.dataset import Sample
from tpo_plugin.errors import TPOError

THINK = "<think>\n\n</think>\n\n"
QWEN3 = (
    "{%- set ns = namespace(last=0) %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}{%- set content = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{%- if loop.index0 > ns.last and loop.last %}"
    "{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + content }}"
    "{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
GEMMA = (
    "{{ '<s>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA = (
    "{{- '<s>' }}{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{- 'Today Date: ' + (date_string or 'today') + '\n\n<|eot_id|>' }}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{- m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '</s>' }}{% endif %}"
)
DEEPSEEK = (
    "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% else %}{{ '<|Assistant|>' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
)
DEEPSEEK_R1 = DEEPSEEK.replace("{{ '<|Assistant|>' }}{% endif %}", "{{ '<|Assistant|><think>\n' }}{% endif %}")
GLM = (
    "[gMASK]<sop>{%- for m in messages %}{%- if m.role == 'user' %}{{ '<|user|>\n' + m.content }}"
    "{{- '/nothink' if enable_thinking is defined and not enable_thinking else '' }}"
    "{%- else %}{{- '<|assistant|>' }}{{- '\n<think></think>' }}{{- '\n' + m.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}"
    "{{- '\n<think></think>' if enable_thinking is defined and not enable_thinking else '' }}{%- endif %}"
)
INTERNVL = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helper.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = [
    "<s>", "<think>", "</think>", "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|end|>", "<|User|>", "<|Assistant|>", "[gMASK]",
    "<sop>",
]  # fmt: skip
OFF = {"enable_thinking": False}

FOLLOWED = {
    "qwen3": (QWEN3, {}),
    "gemma": (GEMMA, {}),
    "llama": (LLAMA, {}),
    "llama, dated": (LLAMA, {"date_string": "26 Jul 2024"}),
    "mistral": (MISTRAL, {}),
    "phi": (PHI, {}),
    "deepseek": (DEEPSEEK, {}),
    "glm": (GLM, {}),
    "glm, not thinking": (GLM, OFF),
    "internvl": (INTERNVL, {}),
}


@pytest.fixture
def tpo_with(small_tokenizer: Make, make_tpo: Make) -> Make:
    def make(template: str, arguments: dict[str, Any]) -> Any:
        tpo = make_tpo(small_tokenizer(SPECIAL, template=template))
        tpo.config.chat_template_kwargs = arguments
        return tpo

    return make


TURNS = ("Where is the red circle?", "It is here: <region>.", "And the blue square?", "There <region>")


def trained_and_asked(tpo: Any, *turns: str) -> None:
    """Every answer stands behind exactly the tokens that ask for it, and all behind them is learned."""
    tasks = [BOX for text in turns if "<region>" in text]
    batch = TPOCollator(tpo)([Sample(record(tpo, *turns, tasks=tasks))])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    task_id = tpo.tokens["region"].task_id
    ends = [0]
    for k in range(1, len(turns), 2):
        part = [BOX for text in turns[: k + 1] if "<region>" in text]
        asked = TPOCollator(tpo, for_generation=True)([Sample(record(tpo, *turns[: k + 1], tasks=part))])
        prompt = asked["input_ids"][0]
        assert torch.equal(ids[: len(prompt)], prompt), k
        n = len(prompt)
        assert labels[n] == ids[n], k
        assert (labels[ends[-1] : n] == -100).all(), k
        learned = (labels[n:] != -100) | (ids[n:] == task_id)
        ends.append(n + int((~learned).nonzero()[0]) if (~learned).any() else len(ids))


@pytest.mark.parametrize("name", list(FOLLOWED))
def test_every_answer_stands_behind_what_asks_for_it(tpo_with, name):
    template, arguments = FOLLOWED[name]
    trained_and_asked(tpo_with(template, arguments), *TURNS)


def test_an_empty_think_block(tpo_with):
    turns = ("Where is the red circle?", "It is here")
    learned = []
    for arguments in ({}, OFF):
        tpo = tpo_with(QWEN3, arguments)
        trained_and_asked(tpo, *turns)
        learned.append(labelled(tpo, TPOCollator(tpo)([Sample(record(tpo, *turns))]), 0))
    assert learned == [THINK + "It is here<|im_end|>", "It is here<|im_end|>"]


def test_a_template_that_asks_otherwise_is_refused(tpo_with):
    with pytest.raises(TPOError, match=r"asks for answer 1 with a prompt that ends in '<think>\\n'.*behind ''"):
        TPOCollator(tpo_with(DEEPSEEK_R1, {}))
    asking = TPOCollator(tpo_with(DEEPSEEK_R1, {}), for_generation=True)
    assert asking.chat.end_id is not None
    tpo = tpo_with(QWEN3, OFF)
    with pytest.raises(TPOError, match="f.json:7: .*asks for answer 1 .*think.*or one record for each answer"):
        TPOCollator(tpo)([Sample(record(tpo, *TURNS, tasks=[BOX, BOX]))])


def test_an_argument_that_the_template_does_not_have(tpo_with):
    with pytest.raises(
        TPOError, match="has 'enable_thinkin', which the host's chat template does not use.*enable_thinking"
    ):
        TPOCollator(tpo_with(QWEN3, {"enable_thinkin": False}))


def test_a_role_that_the_template_refuses(tpo_with):
    tpo = tpo_with(GEMMA, {})
    sample = record(tpo, "Hi", "red")
    turns = (type(sample.turns[0])("system", "Be kind"), *sample.turns)
    with pytest.raises(TPOError, match="f.json:7: cannot be encoded: .*System role not supported"):
        TPOCollator(tpo)([Sample(type(sample)(sample.id, sample.place, turns))])
