"""Checkpoints: which one is complete, and trained host weights that PEFT does not save."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tpo_plugin import zero
from tpo_plugin.errors import TPOError
from tpo_plugin.files import CONFIG_FILE, WEIGHTS_FILE, replace_file
from tpo_plugin.training.parts import LORA

HOST_WEIGHTS_FILE = "tpo_host_weights.safetensors"
"""Weights of the host itself that were trained, such as the connector's: PEFT saves nothing but the adapter."""


def save_host_weights(model: nn.Module, directory: str | os.PathLike[str], names: set[str]) -> None:
    """Writes the host's parameters of these names, if any. Under ZeRO-3 every rank must call it."""
    chosen = {name: parameter for name, parameter in _own_weights(model).items() if name in names}
    with zero.gathered(chosen.values()):
        weights = {n: p.detach().cpu().clone(memory_format=torch.contiguous_format) for n, p in chosen.items()}
    if weights and zero.writes(chosen.values()):
        Path(directory).mkdir(parents=True, exist_ok=True)
        replace_file(
            Path(directory) / HOST_WEIGHTS_FILE, lambda path: save_file(weights, path, metadata={"format": "pt"})
        )


def load_host_weights(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Loads what `save_host_weights` wrote there, if anything."""
    path = Path(directory) / HOST_WEIGHTS_FILE
    if not path.is_file():
        return
    own = _own_weights(model)
    weights = load_file(path, device="cpu")
    strange = [n for n, value in weights.items() if n not in own or zero.shape(own[n]) != value.shape]
    if strange:
        raise TPOError(
            f"{path} has {len(strange)} weight(s) that this host lacks or has in another shape, such as {strange[0]!r}"
        )
    with zero.gathered([own[name] for name in weights], changed=True):
        for name, value in weights.items():
            own[name].data.copy_(value)


def unsaved_by_peft(model: nn.Module) -> set[str]:
    """Names of what trains now in the host of a `PeftModel` outside the adapter."""
    own = _own_weights(model) if hasattr(model, "peft_config") else {}
    return {name for name, parameter in own.items() if parameter.requires_grad}


@contextmanager
def adapter_only(model: nn.Module) -> Iterator[None]:
    """Keeps a `PeftModel` from saving the host's embedding matrices because the vocabulary grew for the task tokens."""
    if not hasattr(model, "peft_config") or model.tpo.growth is None:
        yield
        return
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)
    try:
        yield
    finally:
        del model.save_pretrained


def numpy_state_allowed() -> AbstractContextManager[None]:
    """Lets transformers 4.45 read numpy's random state from a checkpoint, which torch >= 2.6 takes for unsafe."""
    allowed = getattr(torch.serialization, "safe_globals", None)
    if allowed is None:
        return nullcontext()
    array = np.zeros(1, dtype=np.uint32)
    return allowed([array.__reduce__()[0], np.ndarray, np.dtype, type(array.dtype)])


def last_checkpoint(directory: str | os.PathLike[str], num_ranks: int = 1) -> str | None:
    """The latest checkpoint in a stage's folder that was written to its end, or None."""
    found = {}
    for path in Path(directory).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and _is_complete(path, num_ranks):
            found[int(match.group(1))] = str(path)
    return found[max(found)] if found else None


def _is_complete(path: Path, num_ranks: int) -> bool:
    """The Trainer writes trainer_state.json last."""
    rng = ["rng_state.pth"] if num_ranks == 1 else [f"rng_state_{rank}.pth" for rank in range(num_ranks)]
    if not all((path / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE, *rng)):
        return False
    try:
        json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _own_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The host's parameters: neither tpo's nor an adapter's."""
    of_tpo = {id(parameter) for parameter in model.tpo.parameters()}
    return {n: p for n, p in model.named_parameters() if id(p) not in of_tpo and not LORA.search(n)}
