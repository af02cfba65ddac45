"""Weights of the host itself that training changed, beside an adapter: PEFT saves nothing but that."""

from __future__ import annotations

import os
import re
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from tpo_plugin import sharding
from tpo_plugin.atomic import replace_file
from tpo_plugin.errors import TPOError
from tpo_plugin.files import read_weights

LORA = re.compile(r"(^|\.)(lora_\w+|modules_to_save)\.")
"""Parameter names that PEFT trains and saves."""
HOST_WEIGHTS_FILE = "tpo_host_weights.safetensors"
"""What holds them, in a run, a stage or a checkpoint."""


def save_host_weights(model: nn.Module, directory: str | os.PathLike[str], names: set[str]) -> None:
    """Writes the host's parameters of these names, and what its batch norms counted, if any.

    Under ZeRO-3 and FSDP every rank must call it.
    """
    chosen: dict[str, Tensor] = {name: value for name, value in _own_weights(model).items() if name in names}
    chosen |= _running_statistics(model)
    weights = sharding.whole(chosen)
    if weights and sharding.writes(chosen.values()):
        Path(directory).mkdir(parents=True, exist_ok=True)
        replace_file(
            Path(directory) / HOST_WEIGHTS_FILE, lambda path: save_file(weights, path, metadata={"format": "pt"})
        )


def load_host_weights(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Loads what `save_host_weights` wrote there, if anything. Raises `TPOError` where that does not fit."""
    path = Path(directory) / HOST_WEIGHTS_FILE
    if not path.is_file():
        return
    own = {**_own_weights(model), **_running_statistics(model)}
    weights = read_weights(path)
    strange = [n for n, value in weights.items() if n not in own or sharding.shape(own[n]) != value.shape]
    if strange:
        raise TPOError(
            f"{path} has {len(strange)} weight(s) that this host lacks or has in another shape, such as {strange[0]!r}"
        )
    sharding.write(weights, own)
    model.tpo.changed_host |= weights.keys()


def unsaved_by_peft(model: nn.Module) -> set[str]:
    """Names of what trains in the host of a `PeftModel` outside the adapter, now or when this was asked or loaded
    before: what a first training changed is in the files of a second one too, in which it is frozen."""
    if hasattr(model, "peft_config"):
        model.tpo.changed_host |= {name for name, value in _own_weights(model).items() if value.requires_grad}
        return model.tpo.changed_host
    return set()


def _own_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The host's parameters: neither tpo's nor an adapter's."""
    sharding.at_rest(model)
    of_tpo = {id(parameter) for parameter in model.tpo.parameters()}
    return {n: p for n, p in model.named_parameters() if id(p) not in of_tpo and not LORA.search(n)}


def _running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Of the host's batch norms, which move in training though nothing of them trains."""
    of_tpo = {id(module) for module in model.tpo.modules()}
    norms = {n: m for n, m in model.named_modules() if isinstance(m, _NormBase) and id(m) not in of_tpo}
    return {f"{name}.{part}": value for name, norm in norms.items() for part, value in norm.named_buffers()}
