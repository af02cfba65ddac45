"""Images and videos for hosts that take them: the layouts that processors make, tried until one fits.

A layout fits where the forward takes it, its loss is finite, and other pixels give other logits behind the image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

Batch = dict[str, Any]
NO_WORD = 4
"""Stands for an image where the configuration names no id for it."""

TOKEN_NAMES = {
    "image": (
        "image_token_id",
        "image_token_index",
        "image_patch_id",
        "img_context_token_id",
        "media_placeholder_token_id",
    ),
    "video": ("video_token_id", "video_token_index"),
}


def _random(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _vision(model: nn.Module) -> Any:
    config = model.config
    for name in ("vision_config", "vq_config", "encoder"):
        part = getattr(config, name, None)
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
        self.patch = _number(vision, ("patch_size",), 14)
        self.frames = _number(vision, ("temporal_patch_size", "patch_temporal", "video_temporal_patch_size"), 1)
        self.merge = _number(vision, ("spatial_merge_size", "merge_size", "merge_kernel_size"), 2)


Layout = Callable[[Sizes, int, int], Batch]


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


def frames_and_question(s: Sizes, n: int, seed: int) -> Batch:
    frames = _random(n, 4, 3, s.side, s.side, seed=seed)
    return {"pixel_values": frames, "qformer_input_ids": torch.full((n, 4), 9)}


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


def packed_squares_in_rows(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values": _random(1, 16 * n, 3, s.patch, s.patch, seed=seed),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * n),
    }


def packed_grid_hw(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values": _random(16 * n, 3, s.patch, s.patch, seed=seed),
        "image_grid_hws": torch.tensor([[4, 4]] * n),
    }


def rows_of_patches(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values": _random(n, 16, 3 * s.patch**2, seed=seed),
        "pixel_attention_mask": torch.ones(n, 16, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[4, 4]] * n),
    }


def patches_at_places(s: Sizes, n: int, seed: int) -> Batch:
    places = torch.stack(torch.meshgrid(torch.arange(6), torch.arange(6), indexing="xy"), -1).flatten(0, 1)
    return {
        "pixel_values": _random(n, 36, 3 * s.patch**2, seed=seed).sigmoid(),
        "image_position_ids": places.expand(n, -1, -1),
    }


def flattened_patches(s: Sizes, n: int, seed: int) -> Batch:
    places = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"), -1).flatten(0, 1) + 1
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


def video_patches(s: Sizes, n: int, seed: int) -> Batch:
    return {
        "pixel_values_videos": _random(32 * n, 3 * s.frames * s.patch**2, seed=seed),
        "video_grid_thw": torch.tensor([[2, 4, 4]] * n),
    }


def video_frames(s: Sizes, n: int, seed: int) -> Batch:
    return {"pixel_values_videos": _random(n, 8, 3, s.side, s.side, seed=seed)}


IMAGES: tuple[Layout, ...] = (
    merged_patches,
    patches_in_strips,
    packed_patches,
    packed_squares,
    packed_squares_in_rows,
    packed_grid_hw,
    aspect_tiles,
    rows_of_patches,
    patches_at_places,
    two_resolutions,
    pixels_and_question,
    frames_and_question,
    rgb_masked_images,
    masked_images,
    tiles,
    big_images,
    pixels_and_sizes,
    pixels,
    tiles_alone,
    flattened_patches,
)
VIDEOS: tuple[Layout, ...] = (video_patches, video_frames)


class Media:
    """A layout on one architecture, with the ids that stand for an image."""

    def __init__(self, model: nn.Module, layout: Layout, kind: str) -> None:
        self.layout, self.kind = layout, kind
        self.accepted = set(signature(model.forward).parameters)
        config = model.config
        ids = [getattr(config, name, None) for name in TOKEN_NAMES[kind]]
        self.token = next((i for i in ids if isinstance(i, int)), None)
        self.num_tokens = 0

    def __call__(self, model: nn.Module, num_rows: int, seed: int = 2) -> Batch:
        media = self.layout(Sizes(model), num_rows, seed)
        token = NO_WORD if self.token is None else self.token
        return media | {"inserted": torch.full((num_rows, self.num_tokens), token)}

    def per_token(self, model: nn.Module, batch: Batch) -> Batch:
        """Inputs with a column for each token."""
        ids = batch["input_ids"]
        kinds = (
            torch.zeros_like(ids) if self.token is None else (ids == self.token) * (2 if self.kind == "video" else 1)
        )
        extra: Batch = {name: kinds for name in ("token_type_ids", "mm_token_type_ids") if name in self.accepted}
        if "bbox" in self.accepted:
            extra["bbox"] = torch.tensor([0.1, 0.1, 0.2, 0.2]).expand(*ids.shape, 4)
        if "cross_attention_mask" in self.accepted:
            extra["cross_attention_mask"] = torch.ones(*ids.shape, 1, 2, dtype=torch.int64)
        if "image_attention_mask" in self.accepted:
            extra["image_attention_mask"] = torch.ones(*ids.shape, 1, dtype=torch.int64)
        if "image_embeds_position_mask" in self.accepted:
            extra["image_embeds_position_mask"] = ids == NO_WORD
        return extra


def _num_tokens(media: Media, model: nn.Module) -> Iterator[int]:
    """How many tokens an image takes: as the host's features say, else as its configuration does."""
    batch = media(model, 1)
    batch.pop("inserted")
    features = getattr(model, f"get_{media.kind}_features", None)
    if features is not None:
        accepted = signature(features).parameters
        try:
            found = features(**{k: v for k, v in batch.items() if k in accepted or len(accepted) < 3})
            found = getattr(found, "pooler_output", found)
            parts = found if isinstance(found, (list, tuple)) else [found]
            yield sum(math.prod(p.shape[:-1]) for p in parts)
        except Exception:
            pass
    for name in ("num_query_tokens", "image_seq_length", "image_seq_len", "latent_query_num", "num_image_tokens"):
        value = getattr(model.config, name, None)
        if isinstance(value, int):
            yield value
    yield from (0, 1, 4)


def find_media(model: nn.Module, kind: str) -> Media | str:
    """The first layout that fits, or why none does."""
    accepted = signature(model.forward).parameters
    reasons = []
    for layout in IMAGES if kind == "image" else VIDEOS:
        names = set(layout(Sizes(model), 1, 2))
        if not names <= set(accepted):
            continue
        media = Media(model, layout, kind)
        counts = list(dict.fromkeys(_num_tokens(media, model)))
        for count in counts:
            media.num_tokens = count
            try:
                reason = _fits(model, media)
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error)[:120]}"
                said = re.search(r"features:? (\d+)", str(error))
                if said and int(said[1]) not in counts:
                    counts.append(int(said[1]))
            if reason is None:
                return media
            reasons.append(f"{layout.__name__} x{count}: {reason}")
    return "; ".join(reasons) or f"takes no {kind}s"


def _fits(model: nn.Module, media: Media) -> str | None:
    from .check import given, is_encoder_decoder, words

    ids, logits = words(1, 6), []
    for seed in (2, 3):
        batch = media(model, 1, seed)
        text = torch.cat([ids[:, :2], batch.pop("inserted"), ids[:, 2:]], 1)
        batch = {"input_ids": text, "attention_mask": torch.ones_like(text)} | batch
        batch |= media.per_token(model, batch)
        if is_encoder_decoder(model):
            batch["decoder_input_ids"] = ids
        with torch.no_grad():
            logits.append(model(**given(model, batch)).logits[:, -1])
    if not all(x.isfinite().all() for x in logits):
        return "logits are not finite"
    return None if not torch.equal(*logits) else "other pixels give the same logits"


def is_image_text(class_name: str) -> bool:
    """Whether AutoModelForImageTextToText knows it."""
    return class_name in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
