"""The mask head's configuration. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import tpo_plugin as tpo

Backend = Literal["auto", "sam2", "transformers"]
Size = Literal["micro", "tiny", "small", "base_plus", "large"]
Version = Literal["2.0", "2.1"]
Loss = Literal["pixel", "prompt"]
PixelLoss = Literal["bce", "focal"]
Train = Literal["nothing", "decoder", "all"]
GivenBox = Literal["sam2", "adapter"]


@dataclass(kw_only=True)
class MaskConfig(tpo.HeadConfig):
    backend: Backend = "auto"
    """Package that SAM 2 comes from. "auto" is sam2 where it is installed, else transformers; the head writes down
    which it was."""
    checkpoint: str | None = None
    """SAM 2's weights: a name such as "facebook/sam2.1-hiera-large", or a local file or folder. None is random weights,
    which are trained from scratch and saved with the head."""
    checkpoint_sha256: str | None = None
    """Hash of the checkpoint's file. The head fills it in; a file with another hash is refused."""
    size: Size = "micro"
    """Which SAM 2, where the checkpoint's name does not say it. "micro" is for trials on a CPU."""
    version: Version = "2.1"
    """Version of SAM 2, where the checkpoint's name does not say it."""
    image_size: int | None = None
    """Side of the square that frames are resized to, in pixels, a multiple of 32; None: 1024, for "micro" 128."""
    train: Train = "nothing"
    """Which part of SAM 2 is trained: "nothing", the mask "decoder", or "all"."""
    losses: list[Loss] = field(default_factory=lambda: ["pixel"])
    """"pixel": on masks, through SAM 2's decoder. "prompt": on the prompt embeddings, against SAM 2's own of the true
    box, and on an auxiliary box, as the authors' code; needs no image encoder in training. One or both."""
    pixel_loss: PixelLoss = "bce"
    """Loss of pixels beside dice: "bce" (2 x BCE + dice / 2, as LISA) or "focal" (20 x focal + dice, as SAM 2)."""
    clip_frames: int = 1
    """Frames of a video that are decoded in training and evaluation, at least 1: the prompted one and those that follow
    it. More than 1 trains through SAM 2's memory."""
    given_box: GivenBox = "sam2"
    """What prompts SAM 2 in generation where the question gives a box: "sam2", its own embedding of that box, as in the
    authors' demo; "adapter", what the language model makes of it, as everywhere else and in training."""
    cache_dir: str | None = None
    """Folder for image embeddings, so that the frozen image encoder runs once for each frame (8 MB a frame at 1024
    pixels). None keeps none."""

    def __post_init__(self) -> None:
        _one_of("backend", self.backend, Backend)
        _one_of("size", self.size, Size)
        _one_of("version", self.version, Version)
        _one_of("train", self.train, Train)
        _one_of("pixel_loss", self.pixel_loss, PixelLoss)
        _one_of("given_box", self.given_box, GivenBox)
        given: Any = self.losses
        if isinstance(given, str) or not given or len(set(given)) < len(given):
            raise tpo.TPOError(f"mask: losses is {self.losses!r}; expected a list of 'pixel', 'prompt' or both")
        for loss in self.losses:
            _one_of("losses", loss, Loss)
        if self.image_size is not None and not (_is_count(self.image_size) and self.image_size % 32 == 0):
            raise tpo.TPOError(f"mask: image_size is {self.image_size!r}; expected a multiple of 32 pixels")
        if not _is_count(self.clip_frames):
            raise tpo.TPOError(f"mask: clip_frames is {self.clip_frames!r}; expected at least 1")
        if self.train != "nothing" and "pixel" not in self.losses:
            raise tpo.TPOError(
                f"mask: train is {self.train!r} with losses {self.losses}, which do not reach SAM 2; add 'pixel'"
            )
        if self.train == "all" and self.cache_dir is not None:
            raise tpo.TPOError(
                "mask: cache_dir keeps what a frozen image encoder gives, and train='all' trains it; leave one out"
            )


def _one_of(name: str, value: Any, kind: Any) -> None:
    if value not in get_args(kind):
        raise tpo.TPOError(f"mask: {name} is {value!r}; expected one of {', '.join(map(repr, get_args(kind)))}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
