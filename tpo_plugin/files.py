"""The files of a trained TPO: `tpo_config.json`, `tpo_model.safetensors` and the tokenizer's, beside the host's own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tpo_plugin import zero
from tpo_plugin.config import FORMAT_VERSION
from tpo_plugin.errors import TPOError
from tpo_plugin.head import TaskHead
from tpo_plugin.tasks import Tasks

CONFIG_FILE, WEIGHTS_FILE = "tpo_config.json", "tpo_model.safetensors"


def save_tpo(tpo: Tasks, directory: str | os.PathLike[str], *, host_class: str) -> None:
    """Writes the files, each under a temporary name first, so that an interrupted save damages nothing.

    Under ZeRO-3 every rank must call it, and the first one writes.
    """
    directory = Path(directory)
    weights: dict[str, Tensor] = {}
    with zero.gathered(tpo.parameters()):
        for key, value in tpo.state_dict().items():
            if not key.startswith(_external(tpo)):
                # A copy, for ZeRO-3 takes the tensor away again, and safetensors does not write tied tensors twice.
                weights[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    if not zero.writes(tpo.parameters()):
        return
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / WEIGHTS_FILE, lambda path: save_file(weights, path, metadata={"format": "pt"}))
    text = json.dumps(_config_to_json(tpo, host_class), indent=2)
    replace_file(directory / CONFIG_FILE, lambda path: Path(path).write_text(text + "\n", encoding="utf-8"))
    (tpo.processor or tpo.tokenizer).save_pretrained(directory)


def load_weights(tpo: Tasks, directory: str | os.PathLike[str]) -> None:
    """Loads `tpo_model.safetensors` into heads that are applied already; every key and shape must fit."""
    path = Path(directory) / WEIGHTS_FILE
    if not path.is_file():
        raise TPOError(f"{path} is missing; expected the weights that model.tpo.save_pretrained writes")
    try:
        with zero.gathered(tpo.parameters(), changed=True):
            external = {key: value for key, value in tpo.state_dict().items() if key.startswith(_external(tpo))}
            tpo.load_state_dict(external | load_file(path, device="cpu"))
    except RuntimeError as error:
        raise TPOError(f"{path} does not fit the applied heads {list(tpo.heads)}: {error}") from error
    for name, saved in read_config(directory).get("external", {}).items():
        if name in tpo.heads and external_hash(tpo.heads[name]) != saved:
            raise TPOError(
                f"head {name!r}: the weights that it loads from others' files ({', '.join(tpo.heads[name].external)}) "
                f"are not those that {directory} was trained with (SHA-256 {saved[:12]}…); give it the same file"
            )


_HASHES: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def external_hash(head: TaskHead) -> str:
    """SHA-256 of what a head loads from files of others; taken once, before an engine may cast it."""
    if head not in _HASHES:
        digest = hashlib.sha256()
        for key, value in sorted(head.state_dict().items()):
            if key.startswith(head.external):
                digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        _HASHES[head] = digest.hexdigest()
    return _HASHES[head]


def _external(tpo: Tasks) -> tuple[str, ...]:
    """Prefixes of the weights that heads load from files of others."""
    return tuple(f"heads.{name}.{prefix}" for name, head in tpo.heads.items() for prefix in head.external)


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """`tpo_config.json` as written by `save_tpo`."""
    path = Path(directory) / CONFIG_FILE
    if not path.is_file():
        raise TPOError(f"{path} is missing; expected a directory that model.tpo.save_pretrained wrote")
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved.get("format_version", 0) > FORMAT_VERSION:
        raise TPOError(
            f"{path} has format version {saved['format_version']} (tpo-plugin {saved.get('tpo_plugin')}), "
            f"this tpo-plugin "
            f"reads up to {FORMAT_VERSION}: pip install -U tpo-plugin"
        )
    return saved


def replace_file(path: Path, write: Callable[[str], Any]) -> None:
    """Writes a file under a temporary name in the same directory and renames it: nobody finds half of it."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        write(str(temporary))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _config_to_json(tpo: Tasks, host_class: str) -> dict[str, Any]:
    heads = {name: dataclasses.asdict(config) for name, config in tpo.config.heads.items()}
    # Only where there are any: what has none is read by older releases too.
    arguments = tpo.config.chat_template_kwargs
    template = {"chat_template_kwargs": arguments} if arguments else {}
    return {
        "format_version": FORMAT_VERSION,
        "tpo_plugin": version("tpo-plugin"),
        "host_class": host_class,
        "heads": list(tpo.heads),
        "token_ids": {name: list(ids) for name, ids in tpo.token_ids.items()},
        "growth": None if tpo.growth is None else [tpo.growth.old_size, tpo.growth.new_size],
        "external": {name: external_hash(head) for name, head in tpo.heads.items() if head.external},
        "config": {"loss_weights": tpo.config.loss_weights, "heads": heads, **template},
    }
