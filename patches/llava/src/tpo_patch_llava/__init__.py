"""Both LLaVA codebases as hosts: LLaVA-NeXT with its derivatives, and the original LLaVA over Llama and Mistral."""

from __future__ import annotations

import inspect
from typing import Any

import tpo_plugin as tpo

METHOD = "prepare_inputs_labels_for_multimodal"


@tpo.hookimpl
def register_patches(register: Any) -> None:
    register("llava_next", host="tpo_patch_llava.host:LlavaNextHost", matches=is_llava_next)
    register("llava", host="tpo_patch_llava.host:LlavaHost", matches=is_llava)


def is_llava_next(model: Any) -> bool:
    """Whether the model splices its media by a method that takes `modalities`."""
    return "modalities" in (_arguments(model) or ())


def is_llava(model: Any) -> bool:
    """Whether the model splices its media by a method without `modalities`."""
    arguments = _arguments(model)
    return arguments is not None and "modalities" not in arguments


def _arguments(model: Any) -> list[str] | None:
    """Those of the splicing method of its class; None where it has no such method."""
    method = getattr(type(model), METHOD, None)
    return None if method is None else list(inspect.signature(method).parameters)
