"""A host's chat template, and which tokens of a conversation are the assistant's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tpo_plugin.data.records import MEDIA_TAG, Turn
from tpo_plugin.errors import TPOError

Span = tuple[int, int]
"""First character and the one behind the last."""


class ChatTemplate:
    """Renders conversations by the processor's chat template, or by the tokenizer's where the host takes text only.

    Raises `TPOError` where there is no template, or the tokenizer cannot say where its tokens stand in the text.
    """

    def __init__(self, tokenizer: Any, processor: Any = None) -> None:
        self.tokenizer, self.processor = tokenizer, processor
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
        # A processor's tokenizer puts its beginning-of-sequence token itself; a template must not do so again.
        bos = tokenizer.bos_token
        adds_bos = processor is not None and bos is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
        self._doubled = bos if adds_bos else ""
        asked = [Turn("user", "a")]
        self._opening = self.render(asked, generation=True).removeprefix(self.render(asked))
        self.end_id: int | None = None
        text, spans = self.render_answers([*asked, Turn("assistant", "b")])
        ids, offsets = self.tokenize(text)
        after = self._behind(spans[0], ids, offsets)
        if after < len(ids) and ids[after] in {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}:
            self.end_id = ids[after]
        """The special token that ends an answer, or None where the template puts none."""

    def render(self, turns: Sequence[Turn], *, generation: bool = False) -> str:
        """The conversation as text; with `generation` it ends where the assistant begins to speak."""
        messages = [{"role": turn.role, "content": self._content(turn.text)} for turn in turns]
        text = self._renderer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        return text.removeprefix(self._doubled) if self._doubled else text

    def render_answers(self, turns: Sequence[Turn]) -> tuple[str, list[Span]]:
        """The conversation as text, and where in it the assistant's words stand.

        Each answer is found by rendering the conversation once more with a stand-in of private characters for it, and
        both renderings are compared. A blank that the template puts before an answer, but not into the prompt that
        generation starts from, belongs to the answer: the host has to emit it.
        """
        text, answers = self.render(turns), [turn.text for turn in turns if turn.role == "assistant"]
        stand_ins = [f"\ue000{k}\ue001" for k in range(len(answers))]
        pending = iter(stand_ins)
        rest = self.render([Turn("assistant", next(pending)) if turn.role == "assistant" else turn for turn in turns])
        built, spans = "", []
        for stand_in, answer in zip(stand_ins, answers, strict=True):
            before, found, rest = rest.partition(stand_in)
            if not found:
                raise TPOError(f"the chat template leaves out the answer {answer!r}; expected it in the text")
            built += before
            spans.append((len(built) - self._own_blanks(before), len(built) + len(answer)))
            built += answer
        if built + rest != text:
            raise TPOError(
                f"the chat template changes the assistant's text, so it cannot be labelled: expected {built + rest!r}, "
                f"got {text!r}"
            )
        return text, spans

    def render_prompt(self, turns: Sequence[Turn]) -> tuple[str, list[Span]]:
        """The conversation as text that ends where the assistant begins to speak, and its earlier answers in it."""
        text = self.render(turns, generation=True)
        if not any(turn.role == "assistant" for turn in turns):
            return text, []
        said, spans = self.render_answers(turns)
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

    def _own_blanks(self, before: str) -> int:
        opening = self._opening
        if not opening or not before.rstrip().endswith(opening.rstrip()):
            return 0
        return max(0, len(before) - len(before.rstrip()) - (len(opening) - len(opening.rstrip())))

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
