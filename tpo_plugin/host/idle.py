"""A vision tower that runs idle: on a black picture or clip, of whose features nothing is used.

Where parameters are split over ranks, or their gradients reduced, a rank that runs a module waits for the others to run
it too. So a rank whose batch has no media runs the tower and what follows it all the same, where the others do in their
forward; the features reach the loss through an empty slice, so that every gradient is there, and is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers.utils import ModelOutput

from tpo_plugin.errors import HostError
from tpo_plugin.extras import needed

FEATURES = {"pixel_values": "get_image_features", "pixel_values_videos": "get_video_features"}
"""By what a batch holds for its media, the method of a host that makes features of it."""
SIDE, NUM_FRAMES = 56, 2
"""Of the black media, in pixels and frames: processors make of them the least that the tower takes."""

_OF_TOWER = ("last_hidden_state", "hidden_states", "attentions")
"""Beside the features, what `get_image_features` gives in transformers 5."""
_OF_CONFIG = ("vision_feature_layer", "vision_feature_select_strategy")
"""What the methods of transformers 4 ask for that its forward takes from the config."""


class IdleTowers:
    """Runs the vision towers of one host on nothing."""

    def __init__(self, model: nn.Module, processor: Any) -> None:
        self.model, self.processor = model, processor
        self._inputs: dict[str, dict[str, Tensor]] = {}
        """Of black media, by their kind."""

    def check(self, kinds: Sequence[str]) -> None:
        """Raises `HostError` for a kind of media whose tower cannot run idle in this host."""
        for kind in kinds:
            self._method(kind)
            self._inputs_of(kind)

    def run(self, kinds: Sequence[str], towers: Sequence[nn.Module]) -> Tensor | int:
        """A zero that depends on what these kinds' towers give for black media, whatever that is."""
        tensors = [leaf for kind in kinds for leaf in tree_leaves(self._features(kind, towers))]
        return sum(t.flatten()[:0].sum() for t in tensors if isinstance(t, Tensor) and t.is_floating_point())

    def _features(self, kind: str, towers: Sequence[nn.Module]) -> Any:
        like = next((p for tower in towers for p in tower.parameters() if p.is_floating_point()), torch.empty(0))
        inputs = {name: value.to(like.device) for name, value in self._inputs_of(kind).items()}
        method, config = self._method(kind), getattr(self.model, "config", None)
        chosen = {n: getattr(config, n) for n in _OF_CONFIG if n in signature(method).parameters and hasattr(config, n)}
        made = method(**{n: v.to(like.dtype) if v.is_floating_point() else v for n, v in inputs.items()}, **chosen)
        # Parameters that serve the tower's own states alone, which no forward reads, have no gradient on other ranks.
        return {n: v for n, v in made.items() if n not in _OF_TOWER} if isinstance(made, ModelOutput) else made

    def _method(self, kind: str) -> Any:
        name = FEATURES.get(kind)
        owner = next((module for module in self.model.modules() if name and hasattr(module, name)), None)
        if name is None or owner is None:
            raise HostError(
                f"{type(self.model).__name__} has no method {name or 'known here'} that makes features of {kind!r} "
                "alone"
            )
        return getattr(owner, name)

    def _inputs_of(self, kind: str) -> dict[str, Tensor]:
        if kind not in self._inputs:
            accepted = signature(self._method(kind)).parameters
            try:
                made = _processed(self.processor, kind)
            except Exception as error:  # whatever a processor raises
                raise HostError(
                    f"no black media could be made for {kind!r} ({type(error).__name__}: {error})"
                ) from error
            # transformers 4 calls the pixels of videos by another name here than in its forward
            named = {next(iter(accepted)) if n == kind and n not in accepted else n: v for n, v in made.items()}
            self._inputs[kind] = {n: v for n, v in named.items() if n in accepted and isinstance(v, Tensor)}
        return self._inputs[kind]


def _processed(processor: Any, kind: str) -> Any:
    if processor is None:
        raise HostError("model.tpo has no processor; give apply_tpo the host's processor, not its tokenizer alone")
    if kind == "pixel_values":
        with needed():
            from PIL import Image

        return processor.image_processor(images=[Image.new("RGB", (SIDE, SIDE))], return_tensors="pt")
    clip = np.zeros((NUM_FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    videos = getattr(processor, "video_processor", None)
    if videos is None:
        return processor.image_processor(images=None, videos=[clip], return_tensors="pt")
    return videos(videos=[clip], return_tensors="pt")
