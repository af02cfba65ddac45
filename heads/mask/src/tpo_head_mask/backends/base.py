"""What the mask head needs of a SAM 2, whichever package it comes from.

Suffixes: N prompts (objects), F frames, M candidate masks, C SAM 2's width, S side of the square input, G = S / 16.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpo_head_mask.architecture import Architecture

PROMPT_VECTORS = 3
"""The two corners of a box, and the padding point that SAM 2 appends to points."""
UNKNOWN_LENGTH = 10**9
"""Frames of a video whose end is not known yet: SAM 2 spaces its object pointers by the number where it is below 16."""


@dataclass(frozen=True)
class Features:
    """Image embeddings of F frames, ready for SAM 2's decoder, before a memory is attended to."""

    fine: Tensor
    """[F, C / 8, 4 G, 4 G]"""
    middle: Tensor
    """[F, C / 4, 2 G, 2 G]"""
    coarse: Tensor
    """[F, C, G, G]"""

    @property
    def maps(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.fine, self.middle, self.coarse

    def __len__(self) -> int:
        return len(self.coarse)

    def __getitem__(self, frames: Tensor | slice | list[int]) -> Features:
        return Features(*(m[frames] for m in self.maps))


@dataclass(frozen=True)
class Decoded:
    """What the mask decoder says of N prompts, before masks are emptied where the object score is at most 0."""

    mask_logits: Tensor
    """[N, M, 4 G, 4 G]; M is 1, or 3 where several candidates were asked for."""
    iou: Tensor
    """Its own guess of each mask's overlap with the truth, 0 to 1, [N, M]."""
    object_score_logits: Tensor
    """Whether the object is in the frame at all, [N]."""
    tokens: Tensor
    """The decoder's output tokens, [N, M or 1, C]."""

    def best(self) -> Decoded:
        """The candidate with the highest `iou` of each prompt: M = 1."""
        if self.iou.shape[1] == 1:
            return self
        chosen, rows = self.iou.argmax(1), torch.arange(len(self.iou), device=self.iou.device)
        tokens = self.tokens[rows, chosen if self.tokens.shape[1] > 1 else 0]
        return Decoded(
            self.mask_logits[rows, chosen][:, None],
            self.iou[rows, chosen][:, None],
            self.object_score_logits,
            tokens[:, None],
        )


class Tracker(ABC):
    """N objects through a video, or each through one of its own: prompted on the first frame, then followed by SAM 2's
    memory."""

    @abstractmethod
    def step(self, features: Features) -> Decoded:
        """The next frame's masks (M = 1) from its features: F = 1, or F = N, a frame for each object, as on the first
        step. Keeps no more than SAM 2's memory bank."""


class Turn:
    """Held by the thread whose turn it is, which may take it again. In a copy of the model it is nobody's."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *error: object) -> None:
        self.lock.release()

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), ()


class Backend(nn.Module, ABC):
    """A stock SAM 2 in `model`. It stays in evaluation mode; gradients flow where they are enabled.

    Its hooks and its switch are the model's, not a thread's: whatever runs the prompt encoder or the decoder holds
    `turn`. The image encoder, by far the most of the work, runs in several threads at once.
    """

    name: str
    """As in the head's config."""
    model: nn.Module
    architecture: Architecture

    def __init__(self) -> None:
        super().__init__()
        self.turn = Turn()

    def train(self, mode: bool = True) -> Backend:
        """Stays in evaluation mode: SAM 2 tracks in no other, and its dropout is not for a driven decoder."""
        return super().train(False)

    # -- parts ---------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def prompt_encoder(self) -> nn.Module: ...

    @property
    @abstractmethod
    def mask_decoder(self) -> nn.Module: ...

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the decoder proper. Its two projections of the image's fine maps belong to the image encoder here,
        so that embeddings of a frozen encoder stay valid while the decoder trains."""
        for name, parameter in self.mask_decoder.named_parameters():
            if not name.startswith(("conv_s0", "conv_s1")):
                yield parameter

    # -- computing -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def embed_boxes(self, boxes_xyxy: Tensor) -> Tensor:
        """SAM 2's own prompt embeddings [N, 3, C] of boxes [N, 4], 0 to 1, given as two labelled points."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Features:
        """Features of images [F, 3, S, S], uint8 RGB."""

    @abstractmethod
    def decode(
        self, features: Features, prompts_N3C: Tensor, *, multimask: bool = False, dynamic: bool = True
    ) -> Decoded:
        """Masks on prompted frames, without a memory. `features` has N frames, one for each prompt, or one for all.

        `dynamic`: where the single mask is unstable, SAM 2 falls back to the best of the three candidates.
        """

    @abstractmethod
    def start(self, prompts_N3C: Tensor) -> Tracker:
        """A tracker of N objects."""

    @abstractmethod
    def load(self, state: dict[str, Tensor]) -> list[str]:
        """Loads weights under the sam2 package's names; returns what is missing, does not belong or does not fit."""

    @contextmanager
    def dynamic_multimask(self, enabled: bool) -> Iterator[None]:
        """Switches the fallback for unstable masks."""
        decoder: Any = self.mask_decoder
        with self.turn:
            before = decoder.dynamic_multimask_via_stability
            decoder.dynamic_multimask_via_stability = enabled
            try:
                yield
            finally:
                decoder.dynamic_multimask_via_stability = before

    @contextmanager
    def hooked(self, prompts: Sequence[Tensor] | None) -> Iterator[list[Any]]:
        """Replaces the prompt encoder's sparse output, call by call, by `prompts`; collects what the decoder returns.

        Both are PyTorch's forward hooks: the decoder's raw output is not among what SAM 2's tracking gives back.
        """
        queue = None if prompts is None else iter(prompts)
        collected: list[Any] = []

        def replace(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
            return None if queue is None else (next(queue).to(output[0]), output[1])

        def collect(module: nn.Module, args: Any, output: Any) -> None:
            collected.append(output)

        with self.turn:
            handles = [
                self.prompt_encoder.register_forward_hook(replace),
                self.mask_decoder.register_forward_hook(collect),
            ]
            try:
                yield collected
            finally:
                for handle in handles:
                    handle.remove()


def normalised(pixels: Tensor, like: Tensor) -> Tensor:
    """uint8 RGB as SAM 2 wants it: by ImageNet's mean and standard deviation; device and dtype of `like`."""
    scaled = pixels.to(like) / 255
    mean, std = scaled.new_tensor([0.485, 0.456, 0.406]), scaled.new_tensor([0.229, 0.224, 0.225])
    return (scaled - mean[:, None, None]) / std[:, None, None]


def mismatches(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """What keeps a state dict from being this model's, weight by weight."""
    own = model.state_dict()
    wrong = [f"{key} is missing" for key in own if key not in state]
    wrong += [f"{key} does not belong" for key in state if key not in own]
    wrong += [
        f"{key} is {list(value.shape)}, expected {list(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    return wrong
