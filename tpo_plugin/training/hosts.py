"""Hosts from a folder or the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM

from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.training.attention import attention


def load_host(
    name: str, dtype: str = "auto", attn: str = "auto", *, revision: str | None = None
) -> transformers.PreTrainedModel:
    """A host as it was saved: a vision-language model or a causal LM, as its config says.

    `dtype` and `attn` are those of `TrainConfig`, `revision` is of a name on the hub. Raises `TPOError` for an
    attention that cannot run, `HostError` for what is no host, or cannot be read.
    """
    pinned = {} if revision is None else {"revision": revision}
    with host_named(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **pinned)
    vision = getattr(transformers, "AutoModelForImageTextToText", None) or transformers.AutoModelForVision2Seq
    auto = vision if type(config) in vision._model_mapping else AutoModelForCausalLM
    keyword = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
    precision = getattr(config, keyword, None) if dtype == "auto" else getattr(torch, dtype)
    chosen = attention(attn, auto._model_mapping.get(type(config), None), precision)
    options: dict[str, Any] = {"trust_remote_code": False, **pinned}
    options |= {} if chosen is None else {"attn_implementation": chosen}
    with host_named(name):
        try:
            return auto.from_pretrained(name, **{keyword: dtype if dtype == "auto" else precision}, **options)
        except (ImportError, ValueError) as error:
            if chosen is None:
                raise
            raise TPOError(
                f"{name!r} cannot be loaded with attn: {chosen} ({error}); expected 'auto' or 'sdpa'"
            ) from error


@contextmanager
def host_named(name: str) -> Iterator[None]:
    """Inside, whatever transformers raises of a host that it cannot load is a `HostError` with its name."""
    try:
        yield
    except TPOError:
        raise
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        folder = Path(name)
        if folder.is_dir():
            reason = said if (folder / "config.json").is_file() else "the folder has no config.json"
        elif folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            reason = "there is no such folder"
        else:
            reason = f"there is no such folder, and as a name on the Hugging Face Hub: {said}"
        raise HostError(
            f"host {name!r} cannot be loaded ({reason}); expected a name on the hub, or a folder with what "
            "save_pretrained of a host and of its processor or tokenizer write"
        ) from error
