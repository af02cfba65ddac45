"""The vision towers of a host, by what the model says of itself, and the width of what they give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpo_plugin.errors import HostError
from tpo_plugin.extras import needed
from tpo_plugin.seen import Seen, tower_grid


def vision_towers(model: nn.Module) -> list[nn.Module]:
    """The outermost modules that are configured by the host's vision config: by what the model says of itself."""
    config = getattr(model, "config", None)
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    visions = [getattr(part, "vision_config", None) for part in parts]
    kinds = tuple({type(c) for c in visions if c is not None and not isinstance(c, dict)})
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if kinds and name and not inside and isinstance(getattr(module, "config", None), kinds):
            found.append((name, module))
    return [module for _, module in found]


def last_layer(tower: nn.Module) -> nn.Module | None:
    """The last of a tower's own list of layers."""
    layers = [child for child in tower.children() if isinstance(child, nn.ModuleList) and len(child)]
    return layers[0][-1] if layers else None


class _TowerRan(Exception):
    pass


@torch.no_grad()
def tower_width(model: nn.Module, towers: Sequence[nn.Module], processor: Any) -> int | None:
    """C, by one run of the vision tower on a black image; None where the host has no tower, or no processor is given.

    Raises `HostError` where the processor and the host do not get as far as the tower.
    """
    if not towers or processor is None:
        return None
    with needed():
        from PIL import Image

    seen = Seen([], None)

    def layer_ran(module: nn.Module, args: Any, output: Any) -> None:
        seen.layer_output = output

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.keep_tower(output, tower_grid(args, kwargs))
        raise _TowerRan(seen.tower_calls[-1][0].shape[-1])

    handles = [tower.register_forward_hook(stop, with_kwargs=True) for tower in towers]
    handles += [layer.register_forward_hook(layer_ran) for layer in map(last_layer, towers) if layer is not None]
    try:
        token = getattr(processor, "image_token", None) or "<image>"
        inputs = processor(text=[token], images=[Image.new("RGB", (64, 64))], return_tensors="pt")
        like = next(towers[0].parameters())
        tensors = {name: value.to(like.device) for name, value in inputs.items() if isinstance(value, Tensor)}
        model(**{k: v.to(like.dtype) if v.is_floating_point() else v for k, v in tensors.items()})
        reason = "the tower did not run"
    except _TowerRan as seen:
        return int(seen.args[0])
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    finally:
        for handle in handles:
            handle.remove()
    raise HostError(
        f"the width of the vision tower of {type(model).__name__} could not be found ({reason}); a head that looks at "
        "the host's frames needs it: a host adapter can set Host.vision_size (patches/README.md)"
    )
