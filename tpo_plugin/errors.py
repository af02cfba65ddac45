"""The errors that users meet. Each says what was given, what was expected, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class TPOError(ValueError):
    """Wrong use of the plugin, or a host, head or file that does not fit."""


class HostError(TPOError):
    """The host has no usable hook points, or does not let them be changed."""


class RecordError(TPOError):
    """A record that breaks the format; the message names file, line and field."""

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None, field: str | None = None):
        self.file, self.line, self.field = file, line, field
        place = ":".join(str(part) for part in (file, line) if part is not None)
        super().__init__(": ".join(part for part in (place, field, message) if part))


class MediaError(TPOError):
    """An image or video that cannot be read; the message names the file and the reason."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the valid name nearest to `name`, with all valid names; for the end of a message."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{hint} (valid: {', '.join(map(repr, names)) or 'none'})"


def shown(value: Any, length: int = 80) -> str:
    """A value as Python writes it, cut to `length` characters; for messages about values of any kind."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of more than 4300 digits, or what nests too deep
        text = f"a {type(value).__name__} that is too long to be shown"
    return text if len(text) <= length else f"{text[: length - 3]}..."
