"""The files of a trained TPO: `tpo_config.json`, `tpo_model.safetensors` and the tokenizer's, beside the host's own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from annotated_types import Ge
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tpo_plugin import sharding
from tpo_plugin.atomic import replace_file
from tpo_plugin.config import FORMAT_VERSION, config_from_dict
from tpo_plugin.errors import TPOError, shown
from tpo_plugin.head import TaskHead
from tpo_plugin.json_file import read_json
from tpo_plugin.tasks import Tasks

SavedT = TypeVar("SavedT")

CONFIG_FILE, WEIGHTS_FILE = "tpo_config.json", "tpo_model.safetensors"


@dataclasses.dataclass(kw_only=True)
class SavedTPO:
    """What `tpo_config.json` holds beside its version."""

    host_class: str
    """Of the model that it was trained on."""
    heads: list[str]
    """Names, in their order."""
    token_ids: dict[str, tuple[int, int]]
    """(trigger id, task token id) by head."""
    growth: tuple[Annotated[int, Ge(0)], Annotated[int, Ge(0)]] | None
    """Rows of the host's vocabulary before and after."""
    external: dict[str, str] = dataclasses.field(default_factory=dict)
    """By head, `external_hash` of the weights that it loads from files of others."""
    config: dict[str, Any]
    """The fields of `TPOConfig`."""


def save_tpo(tpo: Tasks, directory: str | os.PathLike[str], *, host_class: str) -> None:
    """Writes the files, each under a temporary name first, so that an interrupted save damages nothing.

    Under ZeRO-3 and FSDP every rank must call it, and the first one writes.
    """
    tpo.check_not_offloaded()
    directory, own = Path(directory), tpo.state_dict(keep_vars=True)
    weights = sharding.whole({key: value for key, value in own.items() if not key.startswith(_external(tpo))})
    if not sharding.writes(own.values()):
        return
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / WEIGHTS_FILE, lambda path: save_file(weights, path, metadata={"format": "pt"}))
    text = json.dumps(_config_to_json(tpo, host_class), indent=2)
    replace_file(directory / CONFIG_FILE, lambda path: Path(path).write_text(text + "\n", encoding="utf-8"))
    (tpo.processor or tpo.tokenizer).save_pretrained(directory)


def load_weights(tpo: Tasks, directory: str | os.PathLike[str]) -> None:
    """Loads `tpo_model.safetensors` into heads that are applied already; all keys, shapes and kinds of numbers fit."""
    path, saved = Path(directory) / WEIGHTS_FILE, read_config(directory)
    weights = read_weights(path)
    try:
        with sharding.gathered(tpo.parameters(), changed=True):
            own = tpo.state_dict()
            external = {key: value for key, value in own.items() if key.startswith(_external(tpo))}
            for key, value in weights.items():
                if key in own and value.is_floating_point() != own[key].is_floating_point():
                    raise RuntimeError(f"{key} is {value.dtype}, expected {own[key].dtype}")
            parts = {key: sharding.part(value, own[key]) if key in own else value for key, value in weights.items()}
            tpo.load_state_dict(external | parts)
    except RuntimeError as error:
        raise TPOError(f"{path} does not fit the applied heads {list(tpo.heads)}: {error}") from error
    for name, expected in saved.external.items():
        if name in tpo.heads and external_hash(tpo.heads[name]) != expected:
            raise TPOError(
                f"head {name!r}: the weights that it loads from others' files ({', '.join(tpo.heads[name].external)}) "
                f"are not those that {directory} was trained with (SHA-256 {expected[:12]}…); give it the same file"
            )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises `TPOError`."""
    with _reading(path):
        return load_file(path, device="cpu")


def weight_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes of the tensors of a safetensors file, of which the header alone is read. Raises `TPOError`."""
    with _reading(path), safe_open(path, framework="pt") as file:
        return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise TPOError(f"{path} is missing; expected the weights that model.tpo.save_pretrained writes")
    try:
        yield
    except Exception as error:  # of safetensors, and of torch for a type that it does not have
        raise TPOError(f"{path} cannot be read as safetensors: {error}; expected the file as it was saved") from error


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


def read_config(directory: str | os.PathLike[str]) -> SavedTPO:
    """`tpo_config.json` as written by `save_tpo`. Raises `TPOError` for what no version wrote."""
    path = Path(directory) / CONFIG_FILE
    if not path.is_file():
        raise TPOError(f"{path} is missing; expected a directory that model.tpo.save_pretrained wrote")
    return read_saved(path, SavedTPO)[1]


def read_saved(path: Path, kind: type[SavedT]) -> tuple[dict[str, Any], SavedT]:
    """A JSON file that this package wrote: all that it holds, and its fields of dataclass `kind`, checked.

    Raises `TPOError` for a file of a newer version, and for one that is damaged.
    """
    saved = read_json(path, "what tpo-plugin saves")
    number = saved.get("format_version")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise TPOError(f"{path}: format_version is {shown(number)}; expected a number from 1 to {FORMAT_VERSION}")
    if number > FORMAT_VERSION:
        raise TPOError(
            f"{path} has format version {number} (tpo-plugin {saved.get('tpo_plugin')}), this tpo-plugin reads up to "
            f"{FORMAT_VERSION}: pip install -U tpo-plugin"
        )
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return saved, config_from_dict(kind, {name: saved[name] for name in names if name in saved}, where=str(path))


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
