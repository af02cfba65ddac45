"""Images and videos for hosts that take them: layouts and arrangements of their tokens, tried until one fits.

One fits where the forward takes it, its logits are finite, and other pixels give other logits behind the image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers.models.auto import modeling_auto

from .layouts import IMAGES, VIDEOS, Batch, Layout, Sizes

NO_WORD = 4
"""Stands for an image where the configuration names no id for it."""
BETWEEN = 70
"""A word that stands between the frames of a video, as the time of a frame does."""

TOKEN_NAMES = {
    "image": (
        "image_token_id",
        "image_token_index",
        "image_patch_id",
        "img_context_token_id",
        "media_placeholder_token_id",
    ),
    "video": ("video_token_id", "video_token_index", "media_placeholder_token_id"),
}


def _token(config: Any, kind: str) -> int | None:
    ids = [getattr(config, name, None) for name in TOKEN_NAMES[kind]]
    return next((i for i in ids if isinstance(i, int)), None)


@dataclass(frozen=True)
class Arrangement:
    """How the tokens of an image or a video stand in the text."""

    token: int | None
    """Its id; None where the configuration names none."""
    stretches: int = 1
    """In so many stretches, with a word between them."""


def _arrangements(config: Any, kind: str) -> list[Arrangement]:
    config = getattr(config, "vlm_config", config)
    own, image = _token(config, kind), _token(config, "image")
    if kind == "image":
        return [Arrangement(own)]
    tokens = dict.fromkeys(t for t in (own, image) if t is not None)
    return [Arrangement(t, stretches) for t in tokens for stretches in (1, 2)] or [Arrangement(None)]


class Media:
    """A layout on one architecture, with the ids that stand for an image or a video."""

    def __init__(self, model: nn.Module, layout: Layout, kind: str, arrangement: Arrangement) -> None:
        self.layout, self.kind, self.arrangement = layout, kind, arrangement
        self.accepted = set(signature(model.forward).parameters)
        self.num_tokens = 0

    @property
    def token(self) -> int | None:
        return self.arrangement.token

    def __call__(self, model: nn.Module, num_rows: int, seed: int = 2) -> Batch:
        token, stretches = NO_WORD if self.token is None else self.token, self.arrangement.stretches
        ids = ([token] * (self.num_tokens // stretches) + [BETWEEN]) * stretches
        media = self._accepted(self.layout(Sizes(model), num_rows, seed))
        return media | {"inserted": torch.tensor(ids[:-1], dtype=torch.int64).expand(num_rows, -1)}

    def _accepted(self, batch: Batch) -> Batch:
        return {name: value for name, value in batch.items() if name in self.accepted}

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
    """The first layout and arrangement that fit, or why none does."""
    accepted = set(signature(model.forward).parameters)
    reasons = []
    for layout in IMAGES if kind == "image" else VIDEOS:
        required = set(layout(Sizes(model), 1, 2)) - OPTIONAL
        if not required <= accepted:
            continue
        for arrangement in _arrangements(model.config, kind):
            media = Media(model, layout, kind, arrangement)
            counts = list(dict.fromkeys(_num_tokens(media, model)))
            for count in counts:
                media.num_tokens = count
                try:
                    reason = _fits(model, media)
                except Exception as error:
                    reason = f"{type(error).__name__}: {str(error)[:120]}"
                    counts += [n for n in _said(str(error), model) if n not in counts]
                if reason is None:
                    return media
                reasons.append(f"{layout.__name__} {arrangement} x{count}: {reason}")
    return "; ".join(reasons) or f"takes no {kind}s"


OPTIONAL = {"image_num_crops", "video_compression_mask"}
"""What a host with such a layout need not take."""


def _said(message: str, model: nn.Module) -> list[int]:
    """Numbers of tokens that a host's message speaks of: the features themselves, or all of their numbers."""
    said = re.search(r"features:? (\d+)", message)
    width = getattr(model.config.get_text_config(), "hidden_size", 0)
    if said is None:
        return []
    return [int(said[1]), *([int(said[1]) // width] if width else [])]


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
