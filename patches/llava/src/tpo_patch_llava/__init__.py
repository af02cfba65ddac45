"""The original LLaVA as a host: LLaVA 1.5 of the package `llava`, over Llama and Mistral."""

from __future__ import annotations

import inspect
from typing import Any

import tpo_plugin as tpo

METHOD = "prepare_inputs_labels_for_multimodal"


@tpo.hookimpl
def register_patches(register: Any) -> None:
    register("llava", host="tpo_patch_llava.host:LlavaHost", matches=is_llava)


def is_llava(model: Any) -> bool:
    """Whether the model splices its media by LLaVA's method without `modalities`, which LLaVA-NeXT's takes."""
    method = getattr(type(model), METHOD, None)
    return method is not None and "modalities" not in inspect.signature(method).parameters
