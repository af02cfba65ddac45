"""The attention that a host is loaded with: flash attention where it can run."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from tpo_plugin.errors import TPOError

FLASH = "flash_attention_2"


def attention(name: str, model_class: Any, dtype: torch.dtype | None) -> str | None:
    """The `attn_implementation` for `from_pretrained`: what was named, and of "auto" flash attention where it can run.

    None leaves the choice to transformers: SDPA where the host has it. Raises `TPOError` where flash attention is named
    and cannot run.
    """
    if name not in ("auto", FLASH):
        return name
    reason = why_not_flash(model_class, dtype)
    if reason and name == FLASH:
        raise TPOError(f"attn: {FLASH} cannot run here: {reason}; expected 'auto', or another one such as 'sdpa'")
    return None if reason else FLASH


def why_not_flash(model_class: Any, dtype: torch.dtype | None) -> str:
    """Why flash attention cannot run a host of this class and precision here; "" where it can."""
    if not torch.cuda.is_available():
        return "there is no CUDA GPU"
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, it needs 8.0"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the host is {dtype}, it needs dtype: bfloat16 or float16"
    names = ("_supports_flash_attn", "_supports_flash_attn_2")  # transformers 5, and 4
    if not any(getattr(model_class, name, False) for name in names):
        return f"{getattr(model_class, '__name__', 'this kind of host')} does not have it"
    try:
        importlib.import_module("flash_attn")
    except ImportError as error:
        return f"the package flash-attn cannot be imported ({error})"
    return ""
