"""The body of a chat completion, checked. No parameter of OpenAI's is passed over: it is served, or refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import MinLen

from tpo_plugin.config import Config, Count, config_from_dict
from tpo_plugin.errors import TPOError, shown
from tpo_plugin.json_file import parse_json
from tpo_plugin.serve.errors import Refused

WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "parallel_tool_calls": (),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "stop": ([],),
    "store": (False,),
    "temperature": (0,),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_logprobs": (0,),
    "top_p": (1,),
    "user": (),
    "verbosity": (),
    "web_search_options": (),
}
"""Parameters of OpenAI's that are not served, with the values, besides null, that ask for nothing."""

_OWN = ("annotations", "tpo_predictions", "tpo_media")
"""Fields of an answer, which a client sends back as part of the conversation."""


@dataclass(kw_only=True, frozen=True)
class Url(Config):
    """Where a medium is."""

    url: str
    detail: Literal["auto"] = "auto"


@dataclass(kw_only=True, frozen=True)
class Part(Config):
    """A part of a message's content."""

    type: Literal["text", "image_url", "video_url"]
    text: str | None = None
    image_url: Url | None = None
    video_url: Url | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("text", "image_url", "video_url") if getattr(self, name) is not None]
        if given != [self.type]:
            raise TPOError(f"is of type {self.type!r} and has {given}; expected {self.type!r} and no other of them")


@dataclass(kw_only=True, frozen=True)
class Message(Config):
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[list[Part], MinLen(1)]


@dataclass(kw_only=True, frozen=True)
class StreamOptions(Config):
    """What a stream has besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


@dataclass(kw_only=True, frozen=True)
class ChatRequest(Config):
    """A chat completion's body: OpenAI's names, and of our own `route` and `tasks`."""

    model: str
    messages: Annotated[list[Message], MinLen(1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    seed: int | None = None
    """Of no use, and no harm: the same question has the same answer."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    route: str | None = None
    """Head that must be called, even if the model would not."""
    tasks: list[dict[str, Any]] = field(default_factory=list)
    """What the placeholders in the messages stand for, as in a record."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise TPOError(
                f"max_tokens is {self.max_tokens} and max_completion_tokens is {self.max_completion_tokens}; "
                "expected one of them, they mean the same"
            )
        if self.stream_options is not None and not self.stream:
            raise TPOError('stream_options was given without stream; expected "stream": true')

    @property
    def longest(self) -> int | None:
        """Longest answer that is asked for, in tokens."""
        return self.max_completion_tokens or self.max_tokens

    def conversation(self) -> tuple[list[dict[str, str]], list[tuple[str, Literal["image", "video"], str]]]:
        """The turns of a record, and each medium: its place, its kind, and where it is."""
        turns, media = [], []
        for i, message in enumerate(self.messages):
            texts = []
            for j, part in enumerate(message.content):
                url = part.image_url or part.video_url
                if url is None:
                    texts.append(part.text or "")
                    continue
                if message.role != "user":
                    raise Refused(400, f"messages[{i}].content[{j}]: is a medium in a {message.role} message; "
                                  "expected it in a user message")  # fmt: skip
                kind: Literal["image", "video"] = "image" if part.image_url else "video"
                media.append((f"messages[{i}].content[{j}].{kind}_url", kind, url.url))
                texts.append(f"<{kind}>")
            role = {"system": "system", "user": "human", "assistant": "gpt"}[message.role]
            turns.append({"from": role, "value": "\n".join(texts)})
        return turns, media


def parse_request(body: bytes) -> ChatRequest:
    """The request in a body. Raises `Refused`, with a line for each mistake."""
    try:
        values = parse_json(body, finite=True)
    except ValueError as error:
        raise Refused(400, f"the body is no JSON ({error}); expected an object with model and messages") from error
    if not isinstance(values, dict):
        raise Refused(400, f"the body is {shown(values)}; expected an object with model and messages")
    not_served = list(_not_served(values))
    if not_served:
        raise Refused(400, "\n".join(not_served), code="unsupported_parameter")
    served = {name: value for name, value in values.items() if name not in WITHOUT_EFFECT}
    messages = served.get("messages")
    if isinstance(messages, list):
        served["messages"] = [_plain(message) for message in messages]
    try:
        return config_from_dict(ChatRequest, served, where="request")
    except TPOError as error:
        raise Refused(400, str(error)) from error


def _not_served(values: Mapping[str, Any]) -> Iterator[str]:
    for name, neutral in WITHOUT_EFFECT.items():
        value = values.get(name)
        if value is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
            continue
        reason = "answers are the likeliest, token by token; " if name in ("temperature", "top_p") else ""
        expected = "".join(f"{one!r}, or " for one in neutral)
        yield f"parameter {name!r} is {shown(value)}, which is not supported: {reason}expected {expected}none at all"


def _plain(message: Any) -> Any:
    """A message with its text as a part, without what is empty, and without what an answer of ours holds besides."""
    if not isinstance(message, dict):
        return message
    given = {name: value for name, value in message.items() if value is not None or name in ("role", "content")}
    if given.get("role") == "assistant":
        given = {name: value for name, value in given.items() if name not in _OWN}
    if isinstance(given.get("content"), str):
        given["content"] = [{"type": "text", "text": given["content"]}]
    return given
