"""A frozen CLIP or SigLIP as a part of the head. Suffixes: B rows of the batch, L clips, T words, C width."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import tpo_plugin as tpo
from tpo_head_temporal.config import TemporalConfig
from tpo_head_temporal.encoder import FrozenEncoder


class Clip(nn.Module):
    """Features of frames and words, without gradient. Its weights are the file's, not the checkpoint's."""

    def __init__(self, config: TemporalConfig) -> None:
        """Loads `config.clip`; its hash goes into the configuration, or must be the one that stands there."""
        super().__init__()
        assert config.clip is not None
        self.encoder = FrozenEncoder(config.clip)
        if not self.encoder.has_text:
            raise tpo.TPOError(f"temporal: {config.clip!r} is a vision tower alone; expected a CLIP or a SigLIP")
        found = self.encoder.fingerprint
        if config.clip_sha256 not in (None, found):
            raise tpo.TPOError(
                f"temporal: {config.clip!r} has the hash {found}, the head was trained with {config.clip_sha256}; "
                "expected the same weights and image processor"
            )
        config.clip_sha256 = found
        self.model = self.encoder.model
        with torch.no_grad():
            pixels = self.encoder.pixels(np.zeros((1, 8, 8, 3), dtype=np.uint8))
            self.video_size = self.encoder.vectors({"pixel_values": pixels}).shape[-1]
        self.text_size: int = self.model.config.text_config.hidden_size

    def train(self, mode: bool = True) -> Clip:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor, word_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Of pixels [B, L, 3, H, W] and tokens [B, T], the clips' vectors [B, L, C] and the words' states [B, T, C]."""
        video = self.encoder.vectors({"pixel_values": pixels.flatten(0, 1)}).unflatten(0, pixels.shape[:2])
        return video, self.model.text_model(input_ids=word_ids).last_hidden_state.float()
