"""The sizes that SAM 2 comes in, as numbers that either backend is built from. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import tpo_plugin as tpo
from tpo_head_mask.config import MaskConfig


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One SAM 2. The defaults are those of all released sizes."""

    size: str
    version: str = "2.1"
    image_size: int = 1024
    """Side of the square input, in pixels; the coarsest map that is used has a sixteenth of it."""
    embed_dim: int
    """Width of the image encoder's first stage; each of the four doubles it."""
    num_heads: int = 1
    blocks: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    position_grid: int = 14
    """Side of the learned position map that is interpolated to the input."""
    hidden_size: int = 256
    memory_size: int = 64
    memory_layers: int = 4
    memory_mlp: int = 2048

    @property
    def grid(self) -> int:
        """Side of the coarsest map."""
        return self.image_size // 16

    @property
    def name(self) -> str:
        """As the authors name its checkpoint."""
        prefix = "sam2.1" if self.version == "2.1" else "sam2"
        return f"facebook/{prefix}-hiera-{self.size.replace('_', '-')}"


_SIZES = {
    "micro": Architecture(
        size="micro",
        image_size=128,
        embed_dim=16,
        blocks=(1, 1, 2, 1),
        global_blocks=(3,),
        windows=(8, 4, 8, 4),
        position_grid=7,
        hidden_size=128,
        memory_layers=2,
        memory_mlp=128,
    ),
    "tiny": Architecture(size="tiny", embed_dim=96, blocks=(1, 2, 7, 2), global_blocks=(5, 7, 9), position_grid=7),
    "small": Architecture(size="small", embed_dim=96, blocks=(1, 2, 11, 2), global_blocks=(7, 10, 13), position_grid=7),
    "base_plus": Architecture(
        size="base_plus", embed_dim=112, num_heads=2, blocks=(2, 3, 16, 3), global_blocks=(12, 16, 20)
    ),
    "large": Architecture(
        size="large",
        embed_dim=144,
        num_heads=2,
        blocks=(2, 6, 36, 4),
        global_blocks=(23, 33, 43),
        windows=(8, 4, 16, 8),
        position_grid=7,
    ),
}

CHECKPOINTS = {
    replace(a, version=version).name: (a.size, version)
    for a in _SIZES.values()
    if a.size != "micro"
    for version in ("2.0", "2.1")
}
"""Size and version of each released checkpoint by its name."""


def architecture_of(config: MaskConfig) -> Architecture:
    """The SAM 2 that a config asks for: size and version of its checkpoint's name, or else its own."""
    size, version = CHECKPOINTS.get(config.checkpoint or "", (config.size, config.version))
    chosen = replace(_SIZES[size], version=version)
    return chosen if config.image_size is None else replace(chosen, image_size=config.image_size)


def check_checkpoint_name(name: str) -> None:
    """Raises `TPOError` for a name that is neither a released checkpoint nor a path."""
    if name not in CHECKPOINTS:
        raise tpo.TPOError(
            f"mask: checkpoint {name!r} is neither a file or folder here nor a released SAM 2; released are "
            f"{', '.join(CHECKPOINTS)}"
        )


def recognised(shapes: dict[str, list[int]]) -> tuple[str, str] | None:
    """Size and version of a SAM 2, by the shapes of its weights under either backend's names; None where it is none."""
    widths = [
        s[0] for key, s in shapes.items() if key.endswith(("patch_embed.proj.weight", "patch_embed.projection.weight"))
    ]
    blocks = len([key for key in shapes if key.endswith(".attn.qkv.bias")])
    newer = any(key in shapes for key in ("no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"))
    for size, a in _SIZES.items():
        if widths == [a.embed_dim] and blocks == sum(a.blocks):
            return size, "2.1" if newer else "2.0"
    return None
