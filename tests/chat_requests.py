"""Parts of chat completions, and what of them `tpo serve` refuses: status, and what the sentence says."""

from __future__ import annotations

import base64
from typing import Any


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def medium(kind: str, url: str) -> dict[str, Any]:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def upload(kind: str, content: bytes) -> dict[str, Any]:
    return medium(kind, f"data:{kind}/any;base64,{base64.b64encode(content).decode()}")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"
BROKEN: dict[str, tuple[dict[str, Any], int, str]] = {
    "model": ({"model": "gpt"}, 404, "there is no model 'gpt'; this server has 'run'"),
    "no message": ({"messages": []}, 400, r"messages: is \[\]; expected a list that is not empty"),
    "role": ({"messages": [{"role": "tool", "content": "a"}]}, 400, r"messages\[0\].role: is 'tool'; expected 'sys"),
    "order": ({"messages": [{"role": "user", "content": "a"}] * 2}, 400, r"messages\[1\].role: expected user and a"),
    "last": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        400,
        "ends with an assistant message; expected a question",
    ),
    "part": ({"content": {"type": "audio"}}, 400, r"content\[0\].type: is 'audio'; expected 'text', 'image_url' or"),
    "two in one": ({"content": {"type": "text", "text": "a", "image_url": {"url": "b"}}}, 400, "expected 'text' and"),
    "remote": ({"content": medium("image", "http://x/y.png")}, 400, "a URL of 'http', which this server does not"),
    "base64": ({"content": medium("image", "data:image/png;base64,A*AA")}, 400, "image_url: is no base64"),
    "plain data": ({"content": medium("image", "data:image/svg+xml,<svg/>")}, 400, "is data without base64"),
    "kind": ({"content": medium("image", "data:video/mp4;base64,AAAA")}, 400, "is data of 'video'; expected 'image'"),
    "no picture": ({"content": upload("image", EPS)}, 400, "is no picture"),
    "no video": ({"content": upload("video", b"#EXTM3U\n/etc/passwd\n")}, 400, "is no video that holds its own frames"),
    "empty": ({"content": upload("image", b"")}, 400, "is no picture"),
    "missing": ({"content": medium("image", "none.png")}, 400, "none.png: no such file"),
    "folder": ({"content": medium("image", ".")}, 400, "image_url"),
    "above": ({"content": medium("image", "../picture.png")}, 400, "lies outside of the server's media folder"),
    "encoded": ({"content": medium("image", "file:%2e%2e/picture.png")}, 400, "lies outside of the server's media"),
    "absolute": ({"content": medium("image", "file:///etc/passwd")}, 400, "/etc/passwd: lies outside of the server's"),
    "link": ({"content": medium("image", "link.png")}, 400, "link.png: lies outside of the server's media folder"),
    "list": ({"content": medium("video", "list.ffconcat")}, 400, "list.ffconcat: is no list of frames in the server's"),
    "not media": ({"content": medium("video", "records.jsonl")}, 400, "is no video that holds its own frames"),
    "many": ({"content": [medium("image", "picture.png")] * 4}, 400, "have 4 media; expected at most 3"),
    "tag": ({"content": text("<image>?")}, 400, "tag"),
    "route": ({"route": "regoin"}, 400, "route is 'regoin', no applied head; did you mean 'region'"),
    "task": ({"tasks": [{"head": "region", "boxes": [[2, 2, 3, 3]]}]}, 400, r"tasks\[0\].boxes\[0\]: x1 is 2"),
    "no place": ({"tasks": [{"head": "region", "boxes": [[0, 0, 1, 1]]}]}, 400, "has 1 task.* of head 'region'"),
    "tokens": ({"max_tokens": 17}, 400, "max_tokens is 17; expected at most 16"),
    "no token": ({"max_tokens": 0}, 400, "max_tokens: is 0; expected a whole number of at least 1"),
    "two lengths": ({"max_completion_tokens": 3}, 400, "expected one of them, they mean the same"),
    "long": ({"content": text("how many " * 600)}, 400, "the prompt has 1202 tokens, more than max_length=1008"),
    "longer": ({"content": text("how many " * 20000)}, 400, "the messages have 180000 characters, more than 16128"),
    "large": ({"content": text("a" * 2**21)}, 413, "the body is larger than 1 MiB"),
    "unknown": ({"unknown": 1}, 400, "unknown key 'unknown'"),
    "stream options": ({"stream_options": {"include_usage": True}}, 400, "stream_options was given without stream"),
    "temperature": ({"temperature": 0.7}, 400, "parameter 'temperature' is 0.7, which is not supported.*expected 0"),
    "number": ({"n": 2}, 400, "parameter 'n' is 2, which is not supported: expected 1"),
    "logprobs": ({"logprobs": True, "user": "me"}, 400, "parameter 'logprobs' is True.*\n.*parameter 'user' is 'me'"),
    "streamed": ({"content": text("how many " * 600), "stream": True}, 400, "the prompt has 1202 tokens"),
}  # fmt: skip
