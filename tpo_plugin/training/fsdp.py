"""Which modules FSDP2 makes units of: layers of the host, and nothing inside of heads."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy, transformer_auto_wrap_policy


def choose_units(plugin: Any, model: nn.Module) -> None:
    """Where the user named no classes of layers, those that the host must not split and that it has.

    Accelerate takes all that it must not split, and raises for what the host of this size or kind does not have.
    """
    if _policy(plugin) is transformer_auto_wrap_policy and plugin.transformer_cls_names_to_wrap is None:
        present = {type(module).__name__ for module in model.tpo.model.modules()}
        names = getattr(model.tpo.model, "_no_split_modules", None) or ()
        plugin.transformer_cls_names_to_wrap = sorted(present.intersection(names))


def wraps_heads(plugin: Any, tpo: nn.Module) -> bool:
    """Whether a module of model.tpo would be a unit: by its size, or by the name of its class."""
    modules = [module for module in tpo.modules() if module is not tpo]
    if _policy(plugin) is size_based_auto_wrap_policy:
        sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in modules]
        return max(sizes, default=0) > plugin.min_num_params
    return any(type(module).__name__ in (plugin.transformer_cls_names_to_wrap or ()) for module in modules)


def _policy(plugin: Any) -> Any:
    return getattr(plugin.auto_wrap_policy, "func", plugin.auto_wrap_policy)
