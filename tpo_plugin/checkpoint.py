"""`load_tpo`: the heads of a directory on a host."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tpo_plugin import sharding
from tpo_plugin.apply import apply_tpo, remove_tpo
from tpo_plugin.config import TPOConfig, config_from_dict
from tpo_plugin.errors import TPOError
from tpo_plugin.extras import needed
from tpo_plugin.files import CONFIG_FILE, WEIGHTS_FILE, SavedTPO, load_weights, read_config, weight_shapes
from tpo_plugin.head import build_head
from tpo_plugin.host_weights import load_host_weights
from tpo_plugin.hub import local_folder
from tpo_plugin.plugins import registry
from tpo_plugin.vocabulary import Growth

logger = logging.getLogger(__name__)

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_NOTHING = hashlib.sha256().hexdigest()
"""`external_hash` of a head that loads no weights of others."""

_SMALL = 1 << 20
"""Numbers that a head may always have."""


def load_tpo(
    model: nn.Module,
    directory: str | os.PathLike[str],
    tokenizer: Any = None,
    *,
    example_inputs: dict[str, Any] | None = None,
    revision: str | None = None,
) -> nn.Module:
    """Applies the heads of `directory` to `model` and loads their weights; returns the model.

    `directory` is a folder, or the name of a repository on the hub, at `revision`.
    A LoRA adapter in the directory is loaded with PEFT where the model has none, and the `PeftModel` is returned. What
    training changed in the host beside it (`tpo_host_weights.safetensors`) is loaded too.
    `tokenizer` defaults to the one that was saved there; `example_inputs` as for `apply_tpo`. Raises `TPOError` for a
    directory of a newer format, a head that is not installed, or weights that do not fit.
    """
    directory = local_folder(directory, revision)
    saved, config = checked_config(directory)
    tokenizer = tokenizer or load_tokenizer(directory)
    given, model = model, _with_adapter(model, directory)
    try:
        with _explained(directory, "its heads cannot be put onto the host"):
            apply_tpo(model, tokenizer, heads=saved.heads, config=config, example_inputs=example_inputs)
        for name, ids in model.tpo.token_ids.items():
            known = saved.token_ids.get(name)
            if known != ids:
                raise TPOError(
                    f"head {name!r} was saved with token ids {known and list(known)}, this tokenizer gives "
                    f"{list(ids)}; load the tokenizer that was saved in {directory}"
                )
        _check_growth(model, saved, directory)
        load_weights(model.tpo, directory)
        load_host_weights(model, directory)
    except BaseException:
        if hasattr(model, "tpo"):
            remove_tpo(model)
        if model is not given:
            model.unload()  # the adapter stands in the layers of the host that was given
            vars(given).pop("peft_config", None)  # which older releases of PEFT leave
        raise
    return model


def checked_config(directory: Path) -> tuple[SavedTPO, TPOConfig]:
    """`tpo_config.json`, and what it says of the heads; both checked, also against the weights beside it."""
    saved = read_config(directory)
    config = config_from_dict(TPOConfig, saved.config, where=f"{directory / CONFIG_FILE}: config")
    _check_sizes(saved, config, directory)
    return saved, config


def _check_growth(model: Any, saved: SavedTPO, directory: Path) -> None:
    """Tells `model.tpo` of rows that the host was saved with, having grown when it was trained."""
    if saved.growth is None or model.tpo.growth is not None:
        return
    growth, rows = Growth(*saved.growth), sharding.shape(model.tpo.host.embed.weight)[0]
    if not growth.old_size < growth.new_size <= rows:
        raise TPOError(
            f"{directory / CONFIG_FILE}: growth is {list(saved.growth)}, the host's vocabulary has {rows} rows; "
            "expected its rows before and after; load the host that was saved with it"
        )
    model.tpo.trigger_logits.grow(growth)


def _check_sizes(saved: SavedTPO, config: TPOConfig, directory: Path) -> None:
    """Refuses heads that are far larger than their weights, before they take the memory.

    Not those that load weights of others, which stand in files of their own, and those that PyTorch's device "meta"
    cannot build.
    """
    path = directory / WEIGHTS_FILE
    shapes = weight_shapes(path)
    for spec in registry().choose(saved.heads):
        held = sum(math.prod(shape) for key, shape in shapes.items() if key.startswith(f"heads.{spec.name}."))
        output = shapes.get(f"embeddings.{spec.name}.output")
        if output is None or len(output) != 1:
            raise TPOError(f"{path} holds no weights of head {spec.name!r}, which {CONFIG_FILE} names; give both anew")
        if saved.external.get(spec.name, _NOTHING) != _NOTHING:
            continue
        head_config = spec.make_config(config.heads.get(spec.name, {}))
        try:
            with torch.device("meta"):
                head = build_head(spec, head_config, output[0], lambda: 1)
        except Exception:  # where something is wrong, it is said when the head is built
            continue
        wanted = sum(value.numel() for value in head.state_dict().values())
        if wanted > 2 * held + _SMALL:
            raise TPOError(
                f"{directory / CONFIG_FILE}: head {spec.name!r} would have {wanted} numbers with its configuration, "
                f"{path} holds {held}; expected the configuration that it was saved with"
            )


def _with_adapter(model: Any, directory: Path) -> Any:
    """The model with the LoRA adapter of the directory, if there is one and the model has none."""
    if not (directory / ADAPTER_CONFIG).is_file():
        return model
    if hasattr(model, "peft_config"):
        if not _has_adapter_of(model, directory):
            logger.warning(
                "%s has an adapter, and the model another one, which it keeps; for that of the folder give the host "
                "without one (model.unload())",
                directory,
            )
        return model
    if not (directory / ADAPTER_WEIGHTS).is_file():  # PEFT would take a pickle, or ask the hub
        raise TPOError(f"{directory / ADAPTER_WEIGHTS} is missing; expected it beside {ADAPTER_CONFIG}")
    with needed():
        from peft import PeftModel

    with _explained(directory, "its adapter cannot be loaded"):
        return PeftModel.from_pretrained(model, str(directory))


def _has_adapter_of(model: Any, directory: Path) -> bool:
    """Whether the weights of the model's adapter are those of the folder."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    if not (directory / ADAPTER_WEIGHTS).is_file():
        return False
    own, saved = get_peft_model_state_dict(model, save_embedding_layers=False), load_file(directory / ADAPTER_WEIGHTS)
    return own.keys() == saved.keys() and all(torch.equal(own[name].to(saved[name]), saved[name]) for name in saved)


def load_tokenizer(directory: Path) -> Any:
    """The processor of a folder, or its tokenizer where it has none."""
    from transformers import AutoProcessor, AutoTokenizer

    names = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
    auto = AutoProcessor if any((directory / name).is_file() for name in names) else AutoTokenizer
    with _explained(directory, "its tokenizer cannot be loaded"):
        return auto.from_pretrained(directory, trust_remote_code=False)


@contextmanager
def _explained(directory: Path, what: str) -> Iterator[None]:
    """Whatever a library raises on damaged files as a `TPOError`."""
    try:
        yield
    except TPOError:
        raise
    except Exception as error:
        raise TPOError(f"{directory}: {what}: {type(error).__name__}: {error}; expected it as it was saved") from error
