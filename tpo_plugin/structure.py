"""Hook points of a host that are other ones than when TPO was applied: they are found and hooked again, or refused."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.losses import Call
from tpo_plugin.vocabulary import input_embedding, output_embedding

if TYPE_CHECKING:
    from tpo_plugin.model import TaskPreferenceModel


def look_again(tpo: TaskPreferenceModel, kwargs: dict[str, Any]) -> None:
    """Finds the hook points that text alone did not show, with the inputs of the first forward.

    Raises `HostError` where these do not show them either.
    """
    reason, tpo.host.unseen = tpo.host.unseen, ""
    left_out = ("labels", "past_key_values", "return_dict")  # a cache would be filled twice
    inputs = {k: v for k, v in kwargs.items() if v is not None and k not in left_out}
    if tpo.host.ids not in inputs and tpo.host.ids == "input_ids":
        tpo.host.unseen = reason
        return
    tpo.detach()
    tpo.call = Call({}, None, {}, None, None)  # our forward wrapper stands aside
    try:
        found = type(tpo.host).locate(tpo.model, inputs)
        tpo.host = dataclasses.replace(found, vision_size=tpo.host.vision_size)
    except HostError:
        tpo.host.unseen = reason
        raise
    finally:
        tpo.call = None
        tpo.attach()


def follow_peft(tpo: TaskPreferenceModel) -> None:
    """Hooks the embeddings that PEFT has wrapped since the last forward, so that its delta is added to ours.

    Raises `TPOError` where PEFT has wrapped or adapted `model.tpo` itself.
    """
    model, host = tpo.model, tpo.host
    if model._modules.get("tpo") is not tpo:
        raise TPOError(
            "model.tpo was wrapped by another library (PEFT's modules_to_save=['tpo'] copies it); leave it out: "
            "tpo saves and trains its own weights"
        )
    embed, head = input_embedding(model), output_embedding(model) or host.head
    if embed is not host.embed or head is not host.head:
        tpo.detach()
        host.embed, host.head = embed, head
        tpo.attach()
    if tpo.training:
        lora = next((n for n, m in tpo.named_modules() if type(m).__module__.startswith("peft.")), None)
        if lora is not None:
            raise TPOError(
                f"PEFT put an adapter into model.tpo ({lora}): call get_peft_model first and apply_tpo second, or "
                r"exclude_modules=r'.*\btpo\b.*' in the LoraConfig"
            )
