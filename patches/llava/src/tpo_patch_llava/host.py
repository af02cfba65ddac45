"""The hook points of both LLaVA codebases' models."""

from __future__ import annotations

import builtins
import logging
import sys
from dataclasses import replace
from itertools import accumulate
from typing import Any, ClassVar

import tpo_plugin as tpo
from tpo_patch_llava import METHOD

logger = logging.getLogger(__name__)

LOOP = "_inner_training_loop"
IMAGE = -200
"""Id of the marker that stands for a medium."""


class LlavaHost(tpo.SplicingHost):
    """The original LLaVA: a language model of transformers whose forward first splices the features of images."""

    splice_method: ClassVar[str] = METHOD

    @classmethod
    def locate(cls, model: Any, example_inputs: dict[str, Any] | None = None) -> tpo.Host:
        """As for any model of transformers, with the vision tower that is beside its language model."""
        host = super().locate(model, example_inputs)
        tower = model.get_vision_tower()
        return host if tower is None else replace(host, towers=[tower], vision_size=tower.hidden_size)

    @classmethod
    def media_root(cls, dataset: Any, record: dict[str, Any]) -> str:
        """The folder of images that LLaVA's arguments name."""
        return dataset.data_args.image_folder or "."


class LlavaNextHost(LlavaHost):
    """LLaVA-NeXT, which splices the features of videos too."""

    @classmethod
    def media_root(cls, dataset: Any, record: dict[str, Any]) -> str:
        """The folder of videos or of images that LLaVA's arguments name."""
        kind = "video_folder" if "video" in record else "image_folder"
        return getattr(dataset.data_args, kind, None) or "."

    @classmethod
    def num_frames(cls, sample: dict[str, Any]) -> list[int]:
        """Of the media [(pixels, size, modality), …] of a sample those that are videos."""
        return [len(medium[0]) for medium in sample.get("image", ()) if medium[2] == "video"]

    def video_spans(self, given: dict[str, Any]) -> list[list[tuple[int, int]]] | None:
        """The tower gets the tiles and frames of all media of the batch; a row without media has one that is unused."""
        images, modalities = given.get("images"), given.get("modalities", ["image"])
        if images is None:
            return None
        modalities = [modalities] if isinstance(modalities, str) else modalities
        bounds = [0, *accumulate(1 if image.ndim == 3 else len(image) for image in images)]
        is_video = [*(modality == "video" for modality in modalities), *[False] * len(images)]
        numbers = (given["input_ids"] == IMAGE).sum(1).clamp(min=1).tolist()
        firsts = [0, *accumulate(numbers)]
        return [
            [(bounds[i], bounds[i + 1]) for i in range(first, first + number) if i < len(images) and is_video[i]]
            for first, number in zip(firsts, numbers, strict=False)
        ]

    @classmethod
    def trainer_class(cls, base: type) -> type:
        """Without LLaVATrainer's own training loop where that ends in a NameError, as in LLaVA-NeXT since June 2025."""
        owner = next((c for c in base.__mro__ if LOOP in vars(c)), None)
        if owner is None or owner.__module__.startswith("transformers."):
            return base
        known = vars(sys.modules[owner.__module__]).keys() | vars(builtins).keys()
        missing = [name for name in ("math", "time", "TrainerState") if name not in known]
        code = vars(owner)[LOOP].__code__
        if not set(missing) & set(code.co_names):
            return base
        logger.warning(
            "%s.%s uses %s, which its module does not import: the loop of transformers is used instead",
            owner.__name__,
            LOOP,
            ", ".join(missing),
        )
        parent = next(c for c in base.__mro__[base.__mro__.index(owner) + 1 :] if LOOP in vars(c))
        return type(base.__name__, (base,), {LOOP: vars(parent)[LOOP], "__module__": base.__module__})
