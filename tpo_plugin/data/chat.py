"""A host's chat template, and which tokens of a conversation are the assistant's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tpo_plugin.data.records import MEDIA_TAG, Turn
from tpo_plugin.errors import TPOError, did_you_mean

Span = tuple[int, int]
"""First character and the one behind the last."""


class ChatTemplate:
    """Renders conversations by the processor's chat template, or by the tokenizer's where the host takes text only.

    `arguments` are the template's own, such as `enable_thinking`. Raises `TPOError` where there is no template, it has
    no such argument, or the tokenizer cannot say where its tokens stand in the text.
    """

    def __init__(self, tokenizer: Any, processor: Any = None, arguments: Mapping[str, Any] | None = None) -> None:
        self.tokenizer, self.processor, self.arguments = tokenizer, processor, dict(arguments or {})
        self._renderer, kind = (tokenizer, "tokenizer") if processor is None else (processor, "processor")
        if getattr(self._renderer, "chat_template", None) is None:
            raise TPOError(
                f"the host's {kind} ({type(self._renderer).__name__}) has no chat template; set {kind}.chat_template "
                f"to the Jinja template that the host was trained with, and save it with {kind}.save_pretrained"
            )
        if not getattr(tokenizer, "is_fast", False):
            raise TPOError(
                f"{type(tokenizer).__name__} is a slow tokenizer, which cannot say where its tokens stand in the text; "
                "load the host's fast one: AutoTokenizer.from_pretrained(..., use_fast=True)"
            )
        self._check_arguments()
        # A processor's tokenizer puts its beginning-of-sequence token itself; a template must not do so again.
        bos = tokenizer.bos_token
        adds_bos = processor is not None and bos is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
        self._doubled = bos if adds_bos else ""
        self.end_id: int | None = None
        text, spans, _ = self._rendered([Turn("user", "a"), Turn("assistant", "b")])
        ids, offsets = self.tokenize(text)
        after = self._behind(spans[0], ids, offsets)
        if after < len(ids) and ids[after] in {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}:
            self.end_id = ids[after]
        """The special token that ends an answer, or None where the template puts none."""

    def render(self, turns: Sequence[Turn], *, generation: bool = False) -> str:
        """The conversation as text; with `generation` it ends where the assistant begins to speak."""
        return self._render_each([turns], generation)[0]

    def _render_each(self, conversations: Sequence[Sequence[Turn]], generation: bool) -> list[str]:
        """Several at once, for a call of the template takes longer than what it renders."""
        contents = [[{"role": turn.role, "content": self._content(turn.text)} for turn in c] for c in conversations]
        texts = self._renderer.apply_chat_template(
            contents, tokenize=False, add_generation_prompt=generation, **self.arguments
        )
        return [text.removeprefix(self._doubled) for text in texts]

    def render_answers(self, turns: Sequence[Turn]) -> tuple[str, list[Span]]:
        """The conversation as text, and where in it the assistant's words stand.

        Each answer begins where the prompt ends that generation would start from, so that what is trained is what is
        asked: a blank or an empty think block that the template puts behind that belongs to the answer, for the host
        has to emit it. Raises `TPOError` where such a prompt does not stand before its answer.
        """
        text, spans, strange = self._rendered(turns)
        for number, prompt in strange.items():
            shared = next((i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), len(prompt))
            there = text[: spans[number - 1][0]][shared:]
            raise TPOError(
                f"the chat template asks for answer {number} with a prompt that ends in {prompt[shared:]!r}, and shows "
                f"it in the conversation behind {there!r}, so what is trained would not be what is asked: give other "
                "TPOConfig(chat_template_kwargs=...)"
                + ("" if number == len(spans) else ", or one record for each answer")
            )
        return text, spans

    def check_training(self) -> None:
        """Raises `TPOError` where no answer at all could be trained as it is asked."""
        self.render_answers([Turn("user", "a"), Turn("assistant", "b")])

    def _rendered(self, turns: Sequence[Turn]) -> tuple[str, list[Span], dict[int, str]]:
        """Also the prompts that are no beginning of the text, by the number of their answer, from 1.

        Each answer is found by rendering the conversation once more with a stand-in of private characters for it, and
        both renderings are compared.
        """
        stand_ins = {i: f"\ue000{i}\ue001" for i, turn in enumerate(turns) if turn.role == "assistant"}
        stood_in = [Turn("assistant", stand_ins[i]) if i in stand_ins else turn for i, turn in enumerate(turns)]
        text, rest = self._render_each([turns, stood_in], generation=False)
        prompts = self._render_each([turns[:i] for i in stand_ins], generation=True) if stand_ins else []
        built, spans = "", []
        strange: dict[int, str] = {}
        for number, ((i, stand_in), prompt) in enumerate(zip(stand_ins.items(), prompts, strict=True), 1):
            answer = turns[i].text
            before, found, rest = rest.partition(stand_in)
            if not found:
                raise TPOError(f"the chat template leaves out the answer {answer!r}; expected it in the text")
            built += before
            follows = built.startswith(prompt)
            if not follows:
                strange[number] = prompt
            spans.append((len(prompt) if follows else len(built), len(built) + len(answer)))
            built += answer
        if built + rest != text:
            raise TPOError(
                f"the chat template changes the assistant's text, so it cannot be labelled: expected {built + rest!r}, "
                f"got {text!r}"
            )
        return text, spans, strange

    def render_prompt(self, turns: Sequence[Turn]) -> tuple[str, list[Span]]:
        """The conversation as text that ends where the assistant begins to speak, and its earlier answers in it."""
        text = self.render(turns, generation=True)
        if not any(turn.role == "assistant" for turn in turns):
            return text, []
        said, spans, _ = self._rendered(turns)
        return text, spans if text.startswith(said) else []

    def tokenize(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids of a rendered text, its media not expanded, and the characters of each."""
        encoded = self.tokenizer(text, add_special_tokens=self.processor is not None, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    def answer_tokens(self, spans: Sequence[Span], ids: Sequence[int], offsets: Sequence[Span]) -> list[range]:
        """For each answer its tokens, with the one that ends its turn and the blanks before that."""
        ranges = []
        for start, end in spans:
            inside = [i for i, (first, last) in enumerate(offsets) if last > start and first < end]
            after = self._behind((start, end), ids, offsets)
            ended = after < len(ids) and self.end_id is not None and ids[after] == self.end_id
            begin = inside[0] if inside else after
            ranges.append(range(begin, after + 1 if ended else inside[-1] + 1 if inside else begin))
        return ranges

    def _behind(self, span: Span, ids: Sequence[int], offsets: Sequence[Span]) -> int:
        """Index of the first token behind an answer that is not blank."""
        for i, (first, last) in enumerate(offsets):
            if first >= span[1] and last > first and self.tokenizer.decode([ids[i]]).strip():
                return i
        return len(ids)

    def _check_arguments(self) -> None:
        template = self._renderer.chat_template
        words = set(re.findall(r"[A-Za-z_]\w*", template if isinstance(template, str) else repr(template)))
        for name in self.arguments:
            if name not in words:
                raise TPOError(
                    f"chat_template_kwargs has {name!r}, which the host's chat template does not use"
                    + did_you_mean(name, words)
                )

    def _content(self, text: str) -> str | list[dict[str, str]]:
        if self.processor is None:
            if MEDIA_TAG.search(text):
                raise TPOError("the host has no processor, so it takes text only, and the record has media")
            return text
        content = []
        for i, part in enumerate(MEDIA_TAG.split(text)):
            if i % 2:
                content.append({"type": part})
            elif part := part.strip("\n"):  # the template puts what belongs between a medium and text
                content.append({"type": "text", "text": part})
        return content
