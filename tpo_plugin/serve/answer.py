"""An answer as OpenAI's clients read it, whole or in chunks, with what the heads found in fields of their own."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from tpo_plugin.asking import Answer, text_places
from tpo_plugin.data import Sample


class Completion:
    """One chat completion: `whole` gives it at once, `begin`, `piece` and `end` give it as server-sent events."""

    def __init__(self, tpo: Any, name: str, sample: Sample) -> None:
        self.tpo, self.sample = tpo, sample
        self._fields = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The object `chat.completion`."""
        message = {"role": "assistant", "content": answer.text, "refusal": None, **self._found(answer)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(answer)}
        return {"object": "chat.completion", **self._fields, "choices": [choice], "usage": usage(answer)}

    def begin(self, with_usage: bool) -> bytes:
        """The first event."""
        return self._chunk({"role": "assistant", "content": ""}, with_usage=with_usage)

    def piece(self, text: str, with_usage: bool) -> bytes:
        """The event of a piece of text."""
        return self._chunk({"content": text}, with_usage=with_usage)

    def end(self, answer: Answer, with_usage: bool) -> list[bytes]:
        """The last events: what the heads found, tokens where they were asked for, and the mark of the end."""
        events = [self._chunk(self._found(answer), _reason(answer), with_usage=with_usage)]
        if with_usage:
            last = {"object": "chat.completion.chunk", **self._fields, "choices": [], "usage": usage(answer)}
            events.append(event(last))
        return [*events, b"data: [DONE]\n\n"]

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, *, with_usage: bool) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        values = {"object": "chat.completion.chunk", **self._fields, "choices": [choice]}
        return event(values | ({"usage": None} if with_usage else {}))

    def _found(self, answer: Answer) -> dict[str, Any]:
        """Predictions as `tpo predict --json` has them, their media, and where in the text they stand."""
        media: list[dict[str, Any]] = [
            {"type": "image", "width": image.width, "height": image.height} for image in self.sample.images
        ]
        media += [
            {"type": "video", "width": clip.width, "height": clip.height, "duration_s": clip.duration_s}
            for clip in self.sample.videos
        ]
        predictions = []
        for found in answer.predictions:
            plain = found.to_json()
            if found.value is not None and len(media) == 1:
                size = {"width": media[0]["width"], "height": media[0]["height"]}
                units = found.to_units(**size, duration=media[0].get("duration_s"))
                plain["value_in_units"] = self.tpo.heads[found.head].to_json(units)
            predictions.append(plain)
        return {"annotations": self._annotations(answer), "tpo_predictions": predictions, "tpo_media": media}

    def _annotations(self, answer: Answer) -> list[dict[str, Any]]:
        """For each prediction the characters of the text that lead to it, as OpenAI marks what a source is for."""
        annotations = []
        places = text_places(self.tpo.tokenizer, answer)
        for index, (found, (start, end)) in enumerate(zip(answer.predictions, places, strict=True)):
            place = {"start_index": start, "end_index": end, "head": found.head, "index": index}
            annotations.append({"type": "tpo_prediction", "tpo_prediction": place})
        return annotations


def event(values: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n".encode()


def usage(answer: Answer) -> dict[str, int]:
    """Numbers of tokens."""
    prompt, new = answer.prompt_tokens, len(answer.token_ids)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _reason(answer: Answer) -> str:
    return "stop" if answer.ended else "length"
