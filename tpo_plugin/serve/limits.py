"""What a server takes, and how much of it at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tpo_plugin.config import Config, Count, NotNegative, Positive
from tpo_plugin.errors import TPOError


@dataclass(kw_only=True, frozen=True)
class Limits(Config):
    """Each has an option of `tpo serve`."""

    max_body_mb: Count = 32
    """Largest body of a request, in MiB; media in it are a third longer than as files."""
    max_media: Count = 16
    """Most images and videos of a request."""
    max_pixels: Count = 2**26
    """Most pixels of a request: of all its images, and of all frames that are taken of its videos."""
    max_prompt_tokens: Count = 8192
    """Longest question, with the tokens of its media; less where the host has fewer positions."""
    max_new_tokens: Count = 256
    """Longest answer, in tokens; that of a request which asks for none."""
    timeout_s: Positive = 120.0
    """Longest time from a request's head to the end of its answer."""
    max_requests: Count = 64
    """Requests at once: being read, waiting, and being answered. One more is refused."""
    max_batch: Count = 8
    """Most questions that are answered as one batch."""
    window_s: NotNegative = 0.01
    """How long a question waits for others to share a batch with."""
    threads: Count = 2
    """Batches that are answered at once."""

    def for_host(self, model: Any) -> Limits:
        """Those that the host can keep: within its positions, and one batch at a time where a forward leaves something
        for the next outside of its cache, as Qwen2-VL's does. Raises `TPOError` where no question has room.
        """
        threads = 1 if any(hasattr(module, "rope_deltas") for module in model.modules()) else self.threads
        config: Any = getattr(model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        positions = None if model.tpo.host.decodes else getattr(text, "max_position_embeddings", None)
        if not isinstance(positions, int):
            return replace(self, threads=threads)
        room = positions - self.max_new_tokens
        if room < 1:
            raise TPOError(
                f"max_new_tokens is {self.max_new_tokens}, and the host has {positions} positions for question and "
                "answer; make it smaller"
            )
        return replace(self, threads=threads, max_prompt_tokens=min(self.max_prompt_tokens, room))
