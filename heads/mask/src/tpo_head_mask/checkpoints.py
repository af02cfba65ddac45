"""Building SAM 2 and loading its weights, by name or from a file, with the file's hash checked."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tpo_plugin as tpo
from tpo_head_mask.architecture import Architecture, architecture_of, check_checkpoint_name, recognised
from tpo_head_mask.backends.base import Backend
from tpo_head_mask.config import MaskConfig

INSTALL = {"sam2": "SAM2_BUILD_CUDA=0 pip install sam2", "transformers": "pip install 'transformers>=4.57'"}
"""How to get each backend; sam2 needs no CUDA extension here."""

_MODULES = {"sam2": "sam2", "transformers": "transformers.models.sam2_video"}


def build_backend(config: MaskConfig) -> Backend:
    """SAM 2 as the config asks for it, on the CPU. Writes into the config which backend it is, and the file's hash.

    Raises `TPOError` for a backend that is not installed, and for a checkpoint that is missing, is not the file that
    the config's hash names, or does not fit.
    """
    config.backend = chosen_backend(config.backend)  # type: ignore[assignment]
    architecture = architecture_of(config)
    path = None if config.checkpoint is None else _find(config.checkpoint, config.backend)
    if path is not None:
        config.checkpoint_sha256 = _checked_hash(path, config.checkpoint_sha256)
    backend = _backend_class(config.backend)(architecture)
    if path is not None:
        _load(backend, path, architecture)
    return backend


def chosen_backend(wanted: str) -> str:
    """The backend by name; "auto" is the first that is installed. Raises `TPOError` with the line that installs it."""
    installed = [name for name in INSTALL if _is_installed(_MODULES[name])]
    if wanted == "auto" and not installed:
        raise tpo.TPOError(f"mask: SAM 2 is not installed; {INSTALL['sam2']}, or {INSTALL['transformers']}")
    if wanted != "auto" and wanted not in installed:
        other = f"; or set backend={installed[0]!r}, which is" if installed else ""
        raise tpo.TPOError(f"mask: backend={wanted!r} has no SAM 2 installed here: {INSTALL[wanted]}{other}")
    return installed[0] if wanted == "auto" else wanted


def _is_installed(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        return False
    return spec is not None and spec.origin is not None  # a mere folder of that name has no origin


def _backend_class(name: str) -> Any:
    if name == "sam2":
        from tpo_head_mask.backends.sam2_package import Sam2PackageBackend

        return Sam2PackageBackend
    from tpo_head_mask.backends.transformers_sam2 import TransformersBackend

    return TransformersBackend


def _find(checkpoint: str, backend: str) -> Path:
    path = Path(checkpoint)
    if path.is_file():
        return path
    if path.is_dir():
        files = sorted([*path.glob("*.safetensors"), *path.glob("*.pt")])
        if len(files) != 1:
            raise tpo.TPOError(
                f"mask: checkpoint {checkpoint!r} is a folder with {len(files)} files of weights "
                f"({', '.join(f.name for f in files) or 'none'}); expected one, or give the file"
            )
        return files[0]
    check_checkpoint_name(checkpoint)
    from huggingface_hub import hf_hub_download

    original = checkpoint.split("/")[1].replace("-", "_") + ".pt"
    name = original if backend == "sam2" else "model.safetensors"
    try:
        return Path(hf_hub_download(checkpoint, name))
    except Exception as error:  # offline, no access, no space: the hub's client has a class for each
        reason = str(error).strip().split("\n")[0]
        raise tpo.TPOError(
            f"mask: {name} of checkpoint {checkpoint!r} is neither in the cache nor could it be downloaded ({reason}); "
            "give the path of a copy of it"
        ) from error


def _checked_hash(path: Path, expected: str | None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    if expected not in (None, found):
        raise tpo.TPOError(
            f"mask: {path} has the sha256 {found}, the config names {expected}: it is another checkpoint than the one "
            "that the head was trained with; give that one, or clear checkpoint_sha256 to train with this one"
        )
    return found


def _load(backend: Backend, path: Path, architecture: Architecture) -> None:
    state = _read(path)
    wrong = backend.load(state)
    if not wrong:
        return
    asked = f"SAM 2 {architecture.version} {architecture.size} of backend {backend.name!r}"
    found = recognised({key: list(value.shape) for key, value in state.items()})
    hint = "; expected weights of SAM 2"
    if found is not None and found != (architecture.size, architecture.version):
        hint = f"; it is SAM 2 {found[1]} {found[0]}: set size={found[0]!r} and version={found[1]!r}"
    elif backend.name == "sam2" and any(key.startswith("mask_decoder.") for key in state):
        hint = "; it is written by transformers: set backend='transformers'"
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    raise tpo.TPOError(f"mask: {path} does not fit {asked}: {', '.join(wrong[:3])}{more}{hint}")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, safetensors and torch each raise their own
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise tpo.TPOError(f"mask: checkpoint {path} cannot be read: {reason}") from error
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise tpo.TPOError(
            f"mask: checkpoint {path} holds no weights; expected a dict of tensors, or one under 'model'"
        )
    return state
