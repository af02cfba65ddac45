"""What a server refuses, in the form in which OpenAI's clients read errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tpo_plugin.errors import TPOError

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class Refused(TPOError):
    """A request that is not answered; the message says why and what to do."""

    def __init__(self, status: int, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code

    @property
    def headers(self) -> dict[str, str]:
        """Of the response: whoever came when there was no room may come again."""
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


def error_body(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """The body of a response that is an error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def without_paths(text: str, uploads: Path, media_root: Path | None) -> str:
    """A message as it may leave this machine: a file below `uploads` is called "data", and one of the media folder by
    its name in there."""
    text = re.sub(rf"{re.escape(str(uploads))}(/\w+)*", "data", text)
    return text if media_root is None else text.replace(f"{media_root}/", "")
