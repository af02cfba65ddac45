"""LLaVA-NeXT as a host: the package `llava` of LLaVA-OneVision, and derivatives with the same layout."""

from __future__ import annotations

import inspect
from typing import Any

import tpo_plugin as tpo

METHOD = "prepare_inputs_labels_for_multimodal"


@tpo.hookimpl
def register_patches(register: Any) -> None:
    register("llava_next", host="tpo_patch_llava_next.host:LlavaNextHost", matches=is_llava_next)


def is_llava_next(model: Any) -> bool:
    """Whether the model splices its media by a method that takes `modalities`, which the original LLaVA's does not."""
    method = getattr(type(model), METHOD, None)
    return method is not None and "modalities" in inspect.signature(method).parameters
