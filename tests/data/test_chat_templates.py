from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from chats import Make, labelled, llava, picture, record

from tpo_plugin.config import TPOConfig
from tpo_plugin.data.collate import TPOCollator
from tpo_plugin.data.dataset import Sample
from tpo_plugin.errors import TPOError


def test_beginning_of_sequence_is_not_doubled(small_tokenizer: Make, make_tpo: Make) -> None:
    from tokenizers.processors import TemplateProcessing

    def with_bos(*args: Any, **kwargs: Any) -> Any:
        tokenizer = small_tokenizer(*args, **kwargs)
        tokenizer.bos_token = "<|im_start|>"
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
        )
        return tokenizer

    processor = llava(with_bos)
    processor.chat_template = (
        "<|im_start|>{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tpo = make_tpo(processor.tokenizer, processor)
    sample = Sample(record(tpo, "<image>a", "red", image="a"), (picture(28, 28),))
    batch = TPOCollator(tpo)([sample])
    assert (batch["input_ids"] == tpo.tokenizer.bos_token_id).sum() == 1
    assert labelled(tpo, batch, 0) == " red</s>"  # the blank and the word are one token


def test_template_without_an_end_warns(tpo: Any, caplog: pytest.LogCaptureFixture) -> None:
    tpo.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    with caplog.at_level(logging.WARNING):
        batch = TPOCollator(tpo)([Sample(record(tpo, "Hi", "red", "And?", "blue"))])
    assert "no special token behind an answer" in caplog.text
    assert (
        labelled(tpo, batch, 0) == "assistant: redassistant: blue"
    )  # it asks with nothing, so the host begins by itself


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "changes the assistant's text"),
        ("{{ messages[0]['content'] }}", "leaves out the answer"),
    ],
)
def test_template_that_spoils_answers(tpo: Any, template: str, message: str) -> None:
    tpo.tokenizer.chat_template = template
    with pytest.raises(TPOError, match=message):
        TPOCollator(tpo)([Sample(record(tpo, "Hi", "red"))])


def test_missing_template_and_slow_tokenizer(small_tokenizer: Make, make_tpo: Make) -> None:
    tpo = make_tpo(small_tokenizer(template=None))
    with pytest.raises(
        TPOError, match=r"tokenizer \(.*\) has no chat template; set tokenizer.chat_template to the Jinja"
    ):
        TPOCollator(tpo)
    processor = llava(small_tokenizer)
    processor.chat_template = None
    with pytest.raises(
        TPOError, match=r"processor \(LlavaProcessor\) has no chat template; set processor.chat_template"
    ):
        TPOCollator(make_tpo(processor.tokenizer, processor))
    slow = SimpleNamespace(is_fast=False, chat_template="x")
    host = SimpleNamespace(decodes=False, label_shift=1)
    known = {"tokenizer": slow, "processor": None, "special_ids": None, "tokens": {}, "codecs": {}, "host": host}
    tpo = SimpleNamespace(**known, config=TPOConfig())
    with pytest.raises(TPOError, match="slow tokenizer"):
        TPOCollator(tpo)
