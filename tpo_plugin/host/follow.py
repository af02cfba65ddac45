"""Hook points of a host that are other ones than when TPO was applied: they are found again, or refused."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.host.base import Host
from tpo_plugin.vocabulary import input_embedding, output_embedding


def moved(model: nn.Module, host: Host) -> bool:
    """Whether the model has other embeddings than the host's: PEFT has wrapped them, or something replaced them."""
    return input_embedding(model) is not host.embed or (output_embedding(model) or host.head) is not host.head


def followed(model: nn.Module, host: Host, needed: int) -> Host:
    """The host with the model's own embeddings of now, so that PEFT's delta is added to ours.

    Raises `HostError` where they have fewer than `needed` rows.
    """
    embed, head = input_embedding(model), output_embedding(model) or host.head
    rows = len(getattr(embed, "weight", ()))
    if 0 < rows < needed:
        raise HostError(
            f"the input embedding of {type(model).__name__} was replaced by one of {rows} rows, and the tokens of the "
            f"applied heads need {needed}; change the vocabulary before apply_tpo, or call remove_tpo(model) first"
        )
    return dataclasses.replace(host, embed=embed, head=head)


def can_look_again(host: Host, kwargs: dict[str, Any]) -> bool:
    """Whether these inputs of a forward may show hook points that text alone did not show."""
    return bool(host.unseen) and (host.decodes or kwargs.get(host.ids) is not None)


def looked_again(model: nn.Module, host: Host, kwargs: dict[str, Any]) -> Host:
    """The host as the inputs of a forward show it. Raises `HostError` where these do not show it either."""
    left_out = ("labels", "past_key_values", "return_dict")  # a cache would be filled twice
    inputs = {k: v for k, v in kwargs.items() if v is not None and k not in left_out}
    return dataclasses.replace(type(host).locate(model, inputs), vision_size=host.vision_size)


def check_untouched(model: nn.Module, tpo: nn.Module) -> None:
    """Raises `TPOError` where PEFT has wrapped or, in training, adapted `model.tpo` itself."""
    if model._modules.get("tpo") is not tpo:
        raise TPOError(
            "model.tpo was wrapped by another library (PEFT's modules_to_save=['tpo'] copies it); leave it out: "
            "tpo saves and trains its own weights"
        )
    if tpo.training:
        lora = next((n for n, m in tpo.named_modules() if type(m).__module__.startswith("peft.")), None)
        if lora is not None:
            raise TPOError(
                f"PEFT put an adapter into model.tpo ({lora}): call get_peft_model first and apply_tpo second, or "
                r"exclude_modules=r'.*\btpo\b.*' in the LoraConfig"
            )
