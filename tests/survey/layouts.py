"""The tensors that processors make of images and videos, for n rows with one image or video each.

Values are random; `seed` chooses them. A layout of another host needs no more than a function here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Any]


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _vision(model: nn.Module) -> Any:
    config = model.config
    vlm = getattr(config, "vlm_config", config)
    for name in ("vision_config", "vq_config", "encoder"):
        part = getattr(vlm, name, None)
        if part is not None:
            return part
    return config


def _number(config: Any, names: tuple[str, ...], default: int) -> int:
    for name in names:
        value = getattr(config, name, None)
        value = value[0] if isinstance(value, (list, tuple)) and value else value
        if isinstance(value, int) and value:
            return value
    return default


class Sizes:
    """Sizes of a host's vision tower."""

    def __init__(self, model: nn.Module) -> None:
        vision = _vision(model)
        self.side = _number(vision, ("image_size", "force_image_size", "resolution"), 28)
        self.patch = _number(vision, ("model_patch_size", "patch_size"), 14)
        self.frames = _number(vision, ("temporal_patch_size", "patch_temporal", "video_temporal_patch_size"), 1)
        self.merge = _number(vision, ("spatial_merge_size", "merge_size", "merge_kernel_size"), 2)
        self.pool = _number(vision, ("pooling_kernel_size",), 3)


Layout = Callable[[Sizes, int, int], Batch]


def _places(width: int, height: int, indexing: str = "xy") -> Tensor:
    return torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing=indexing), -1).flatten(0, 1)


# -- images ------------------------------------------------------------------------------------------------------------


def pixels(s: Sizes, n: int, seed: int) -> Batch:
    return {"pixel_values": _random(n, 3, s.side, s.side, seed=seed)}


def pixels_and_sizes(s: Sizes, n: int, seed: int) -> Batch:
    return pixels(s, n, seed) | {"image_sizes": torch.full((n, 2), s.side)}


def two_resolutions(s: Sizes, n: int, seed: int) -> Batch:
    return pixels(s, n, seed) | {"high_res_pixel_values": _random(n, 3, s.side, s.side, seed=seed)}


def tiles(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values": _random(n, 2, 3, s.side, s.side, seed=seed),
        "image_sizes": torch.full((n, 2), s.side),
    }


def pixels_and_question(s: Sizes, n: int, seed: int) -> Batch:
    return pixels(s, n, seed) | {"qformer_input_ids": torch.full((n, 4), 9)}


def rgb_masked_images(s: Sizes, n: int, seed: int) -> Batch:
    return tiles_alone(s, n, seed) | {"pixel_attention_mask": torch.ones(n, 1, dtype=torch.bool)}


def tiles_alone(s: Sizes, n: int, seed: int) -> Batch:
    return {"pixel_values": _random(n, 1, 3, s.side, s.side, seed=seed)}


def masked_images(s: Sizes, n: int, seed: int) -> Batch:
    return tiles_alone(s, n, seed) | {"pixel_attention_mask": torch.ones(n, 1, s.side, s.side, dtype=torch.bool)}


def aspect_tiles(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values": _random(n, 1, 2, 3, s.side, s.side, seed=seed),
        "aspect_ratio_ids": torch.full((n, 1), 2),
        "aspect_ratio_mask": torch.ones(n, 1, 2, dtype=torch.int64),
    }


def packed_patches(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values": _random(16 * n, 3 * s.frames * s.patch**2, seed=seed),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * n),
    }


def packed_squares(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values": _random(16 * n, 3, s.patch, s.patch, seed=seed),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * n),
    }


def packed_merged_squares(s: Sizes, n: int, seed: int) -> Batch:
    """One square for each token, of which the grid counts the tokens."""
    side = s.merge * s.patch
    return {
        "pixel_values": _random(4 * n, side, side, 3, seed=seed),
        "image_grid_thw": torch.tensor([[1, 2, 2]] * n),
    }


def packed_squares_in_rows(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values": _random(1, 16 * n, 3, s.patch, s.patch, seed=seed),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * n),
    }


def packed_grid_hws(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values": _random(16 * n, 3, s.patch, s.patch, seed=seed),
        "image_grid_hws": torch.tensor([[4, 4]] * n),
    }


def packed_grid_hw(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values": _random(16 * n, 3 * s.patch**2, seed=seed),
        "image_grid_hw": torch.tensor([[4, 4]] * n),
    }


def squares_in_time(s: Sizes, n: int, seed: int) -> Batch:
    """Squares of the image with their frames, channels last."""
    return {"pixel_values": _random(4 * n, s.frames, s.patch, s.patch, 3, seed=seed)}


def pooled_crops(s: Sizes, n: int, seed: int) -> Batch:
    """One crop of 2 x 2 patches for each image, each patch a token of it and of the small image before it."""
    return {
        "pixel_values": _random(n, 4, 3 * s.patch**2, seed=seed),
        "image_token_pooling": torch.arange(4 * n)[:, None],
        "image_grids": torch.tensor([[2, 2, 0, 0]] * n),
        "image_num_crops": torch.ones(n, dtype=torch.int64),
    }


def rows_of_patches(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values": _random(n, 16, 3 * s.patch**2, seed=seed),
        "pixel_attention_mask": torch.ones(n, 16, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[4, 4]] * n),
    }


def patches_alone(s: Sizes, n: int, seed: int) -> Batch:
    return {"pixel_values": _random(n, 4, 3 * s.patch**2, seed=seed)}


def patches_at_places(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values": _random(n, 36, 3 * s.patch**2, seed=seed).sigmoid(),
        "image_position_ids": _places(6, 6).expand(n, -1, -1),
    }


def flattened_patches(s: Sizes, n: int, seed: int) -> Batch:
    places = _places(4, 4, "ij") + 1
    patches = _random(n, 16, 3 * s.patch**2, seed=seed)
    return {"flattened_patches": torch.cat([places.expand(n, -1, -1).float(), patches], -1)}


def merged_patches(s: Sizes, n: int, seed: int) -> Batch:
    return packed_patches(s, n, seed) | {"image_merge_sizes": torch.full((n,), 2)}


def patches_in_strips(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values": _random(1, 3, s.patch, 16 * n * s.patch, seed=seed),
        "target_sizes": torch.tensor([[4, 4]] * n),
    }


def big_images(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values": _random(n, 3, 4 * s.patch, 4 * s.patch, seed=seed),
        "image_sizes": torch.full((n, 2), 4 * s.patch),
    }


def protein(s: Sizes, n: int, seed: int) -> Batch:
    """What a host that looks at proteins gets in the place of an image."""
    ids = torch.randint(4, 20, (n, 6), generator=torch.Generator().manual_seed(seed))
    return {"protein_input_ids": ids, "protein_attention_mask": torch.ones(n, 6, dtype=torch.int64)}


# -- videos: of eight frames, or two pairs ----------------------------------------------------------------------------


def video_patches(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values_videos": _random(32 * n, 3 * s.frames * s.patch**2, seed=seed),
        "video_grid_thw": torch.tensor([[2, 4, 4]] * n),
    }


def merged_video_patches(s: Sizes, n: int, seed: int) -> Batch:
    compressed = torch.ones(8 * n, dtype=torch.bool)
    return video_patches(s, n, seed) | {
        "video_merge_sizes": torch.full((n,), 2),
        "video_compression_mask": compressed,
    }


def video_squares(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values_videos": _random(32 * n, 3, s.patch, s.patch, seed=seed),
        "video_grid_thw": torch.tensor([[2, 4, 4]] * n),
    }


def video_frames(s: Sizes, n: int, seed: int) -> Batch:
    return {"pixel_values_videos": _random(n, 8, 3, s.side, s.side, seed=seed)}


def frames_of_one_video(s: Sizes, n: int, seed: int) -> Batch:
    """All frames one after another: of a host that takes one video."""
    return {"pixel_values_videos": _random(4 * n, 3, s.side, s.side, seed=seed)}


def video_patches_at_places(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values_videos": _random(2 * n, 36, 3 * s.patch**2, seed=seed).sigmoid(),
        "video_position_ids": _places(6, 6).expand(2 * n, -1, -1),
        "num_frames_per_video": torch.full((n,), 2),
    }


def video_in_strips(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values_videos": _random(1, 3, s.patch, 32 * n * s.patch, seed=seed),
        "target_sizes_videos": torch.tensor([[4, 4]] * 2 * n),
    }


def pooled_frames(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values_videos": _random(2 * n, 4, 3 * s.patch**2, seed=seed),
        "video_token_pooling": torch.arange(8 * n)[:, None],
        "video_grids": torch.tensor([[2, 2, 2]] * n),
    }


def frames_and_question(s: Sizes, n: int, seed: int) -> Batch:
    frames = _random(n, 4, 3, s.side, s.side, seed=seed)
    return {"pixel_values": frames, "qformer_input_ids": torch.full((n, 4), 9)}


IMAGES: tuple[Layout, ...] = (
    merged_patches,
    patches_in_strips,
    packed_patches,
    packed_squares,
    packed_merged_squares,
    packed_squares_in_rows,
    packed_grid_hws,
    packed_grid_hw,
    pooled_crops,
    aspect_tiles,
    rows_of_patches,
    patches_at_places,
    two_resolutions,
    pixels_and_question,
    rgb_masked_images,
    masked_images,
    tiles,
    big_images,
    pixels_and_sizes,
    pixels,
    tiles_alone,
    patches_alone,
    squares_in_time,
    flattened_patches,
    protein,
)
VIDEOS: tuple[Layout, ...] = (
    merged_video_patches,
    video_in_strips,
    video_patches,
    video_squares,
    video_patches_at_places,
    pooled_frames,
    video_frames,
    frames_of_one_video,
    frames_and_question,
)
