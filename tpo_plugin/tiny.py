"""The tiny host of `tpo_plugin.testing` by its earlier name."""

from tpo_plugin.testing.tiny import (
    HIDDEN_SIZE,
    VISION_SIZE,
    logits_of,
    state_of,
    tiny_batch,
    tiny_features,
    tiny_host,
)

__all__ = ["HIDDEN_SIZE", "VISION_SIZE", "logits_of", "state_of", "tiny_batch", "tiny_features", "tiny_host"]
