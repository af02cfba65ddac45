"""`load_tpo`: the heads of a directory on a host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from tpo_plugin.apply import apply_tpo, remove_tpo
from tpo_plugin.config import TPOConfig, config_from_dict
from tpo_plugin.errors import TPOError
from tpo_plugin.files import CONFIG_FILE, load_weights, read_config
from tpo_plugin.vocabulary import Growth


def load_tpo(
    model: nn.Module,
    directory: str | os.PathLike[str],
    tokenizer: Any = None,
    *,
    example_inputs: dict[str, Any] | None = None,
) -> nn.Module:
    """Applies the heads of `directory` to `model` and loads their weights; returns the model.

    A LoRA adapter in the directory is loaded with PEFT where the model has none, and the `PeftModel` is returned.
    `tokenizer` defaults to the one that was saved there; `example_inputs` as for `apply_tpo`. Raises `TPOError` for a
    directory of a newer format, a head that is not installed, or weights that do not fit.
    """
    directory = Path(directory)
    saved = read_config(directory)
    if (directory / "adapter_config.json").is_file() and not hasattr(model, "peft_config"):
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(directory))
    if tokenizer is None:
        from transformers import AutoProcessor, AutoTokenizer

        names = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
        auto = AutoProcessor if any((directory / name).is_file() for name in names) else AutoTokenizer
        tokenizer = auto.from_pretrained(directory)
    config = config_from_dict(TPOConfig, saved["config"], where=f"{directory / CONFIG_FILE}: config")
    apply_tpo(model, tokenizer, heads=saved["heads"], config=config, example_inputs=example_inputs)
    try:
        for name, ids in saved["token_ids"].items():
            if list(model.tpo.token_ids[name]) != ids:
                raise TPOError(
                    f"head {name!r} was saved with token ids {ids}, this tokenizer gives "
                    f"{list(model.tpo.token_ids[name])}; "
                    f"load the tokenizer that was saved in {directory}"
                )
        if saved["growth"] is not None and model.tpo.growth is None:  # the host was saved with its grown vocabulary
            model.tpo.trigger_logits.grow(Growth(*saved["growth"]))
        load_weights(model.tpo, directory)
    except BaseException:
        remove_tpo(model)
        raise
    return model
