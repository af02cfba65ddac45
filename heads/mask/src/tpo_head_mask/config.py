"""The mask head's configuration. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, MinLen, MultipleOf

import tpo_plugin as tpo
from tpo_head_mask.rle import MAX_PIXELS

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
    image_size: Annotated[int, Ge(32), MultipleOf(32)] | None = None
    """Side of the square that frames are resized to, in pixels, a multiple of 32; None: 1024, for "micro" 128."""
    train: Train = "nothing"
    """Which part of SAM 2 is trained: "nothing", the mask "decoder", or "all"."""
    losses: Annotated[list[Loss], MinLen(1)] = field(default_factory=lambda: ["pixel"])
    """"pixel": on masks, through SAM 2's decoder. "prompt": on the prompt embeddings, against SAM 2's own of the true
    box, and on an auxiliary box, as the authors' code; needs no image encoder in training. One or both."""
    pixel_loss: PixelLoss = "bce"
    """Loss of pixels beside dice: "bce" (2 x BCE + dice / 2, as LISA) or "focal" (20 x focal + dice, as SAM 2)."""
    clip_frames: Annotated[int, Ge(1)] = 1
    """Frames of a video that are decoded in training and evaluation, at least 1: the prompted one and those that follow
    it. More than 1 trains through SAM 2's memory."""
    given_box: GivenBox = "sam2"
    """What prompts SAM 2 in generation where the question gives a box: "sam2", its own embedding of that box, as in the
    authors' demo; "adapter", what the language model makes of it, as everywhere else and in training."""
    cache_dir: str | None = None
    """Folder for image embeddings, so that the frozen image encoder runs once for each frame (8 MB a frame at 1024
    pixels). None keeps none."""

    max_mask_pixels: Annotated[int, Ge(1)] = MAX_PIXELS
    """Pixels that a mask of a record may have; one with more is refused before it takes memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.losses)) < len(self.losses):
            raise tpo.TPOError(f"losses: is {self.losses!r}; expected each at most once")
        if self.train != "nothing" and "pixel" not in self.losses:
            raise tpo.TPOError(
                f"train: is {self.train!r} with losses {self.losses}, which do not reach SAM 2; add 'pixel'"
            )
        if self.train == "all" and self.cache_dir is not None:
            raise tpo.TPOError(
                "cache_dir: keeps what a frozen image encoder gives, and train='all' trains it; leave one out"
            )
