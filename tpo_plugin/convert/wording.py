"""How an entry is asked: one of several wordings, always the same one for the same id."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32


def worded(wordings: Sequence[str], id: str, **words: str) -> str:
    """The wording that falls to `id`, with its `{words}` filled in."""
    text = wordings[crc32(id.encode()) % len(wordings)]
    for name, word in words.items():
        text = text.replace(f"{{{name}}}", word)
    return text
