"""The hook points of a host, found by one dry run on fake tensors (spec: the tensor that reaches the output embedding).

Suffixes: B batch, T sequence, D width of the output embedding's input, E width of the input embedding's output.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tpo_plugin.errors import HostError
from tpo_plugin.host.probe import ADAPTER_HINT, dry_run, example_inputs_of, head_of_logits, same_tensor, undisturbed
from tpo_plugin.host.towers import tower_width, vision_towers
from tpo_plugin.tokens import HeadTokens
from tpo_plugin.vocabulary import input_embedding, output_embedding

logger = logging.getLogger(__name__)


@dataclass
class Host:
    """Where to hook a model; a patch for another codebase subclasses it and overrides `locate`."""

    embed: nn.Module
    """Input embedding: ids of any shape to [..., E]."""
    head: nn.Module
    """Output embedding: [..., D] to logits [..., V]."""
    hidden: nn.Module | None
    """Innermost module whose output is the head's input [B, T, D]; None where none is, or it runs more than once."""
    hidden_size: int
    """D."""
    head_gives_logits: bool
    """Whether the host's logits are the head's output itself (not soft-capped, scaled or cut)."""
    honours_num_items: bool
    """Whether the host divides its summed loss by `num_items_in_batch`."""
    ids: str = "input_ids"
    """Argument of its forward whose tokens reach the output embedding: `decoder_input_ids` of an encoder-decoder."""
    label_shift: int = 1
    """Labels stand so many columns behind the position that predicts them: 0 in an encoder-decoder, and in a causal LM
    that scores them where they stand (BART's decoder, XLNet)."""
    media_first: bool = False
    """Whether the states of media stand before those of the ids, which have no placeholders for them."""
    unseen: str = ""
    """Why it could not be run on text alone; it is looked at again with the inputs of its first forward."""
    towers: Sequence[nn.Module] = ()
    """Vision towers, whose outputs heads may look at."""
    vision_size: int | None = None
    """C, the width of the vision tower's output, where it is known."""

    media_first_types: ClassVar[frozenset[str]] = frozenset({"git"})
    """Types of model (`config.model_type`) that are `media_first`, which a run on text alone does not show."""

    parts: ClassVar[Mapping[str, str]] = {
        "connector": (
            r"(^|\.)(multi_modal_projector|mm_projector|connector|merger|deepstack_merger_list|mlp1|image_newline)(\.|$)"
        ),
        "vision": r"(^|\.)(vision_tower|vision_model|visual|video_tower|image_tower)(\.|$)",
    }
    """Regular expressions on the names of a vision-language model's parameters, by the part that they belong to; the
    first that matches wins."""

    @property
    def decodes(self) -> bool:
        """Whether the host is an encoder-decoder: its tokens of heads stand on the decoder's side."""
        return self.ids != "input_ids"

    def ids_of(self, model: Any, kwargs: dict[str, Any], tokens: Mapping[str, HeadTokens]) -> Tensor | None:
        """The tokens that reach the output embedding; an encoder-decoder's are made of its labels where not given.

        Where a label is a trigger, they are put into `kwargs`; otherwise the host makes them itself: some take other
        inputs for it than labels.
        """
        labels = kwargs.get("labels")
        given = [kwargs.get(key) for key in (self.ids, "decoder_inputs_embeds")]
        if not self.decodes or labels is None or given != [None, None]:
            return kwargs.get(self.ids)
        made = decoder_ids(model, labels, tokens)
        triggers = torch.tensor([t.trigger_id for t in tokens.values()], device=labels.device)
        if torch.isin(labels, triggers).any():
            kwargs[self.ids] = made
        return made

    @classmethod
    def locate(cls, model: nn.Module, example_inputs: dict[str, Any] | None = None) -> Host:
        """Finds the hook points of a Hugging Face model, changing nothing.

        `example_inputs` are what its forward needs, by default four text tokens. Raises `HostError` with what
        is missing.
        """
        name = type(model).__name__
        embed, head = _embeddings(model, name)
        config = getattr(model, "config", None)
        decodes = bool(getattr(config, "is_encoder_decoder", False))
        kind: dict[str, Any] = {"ids": "decoder_input_ids", "label_shift": 0} if decodes else {}
        kind["media_first"] = getattr(config, "model_type", None) in cls.media_first_types
        towers = vision_towers(model)
        try:
            run = dry_run(model, embed, head, example_inputs)
        except HostError as error:
            if example_inputs is not None or head is None or not isinstance(getattr(head, "weight", None), Tensor):
                raise
            size = head.weight.shape[-1]
            return cls(embed, head, None, size, False, False, **kind, unseen=str(error), towers=towers)
        if head is None:
            head = head_of_logits(run, name)
        calls = [call for call in run.calls if call.module is head]
        if len(calls) != 1:
            raise HostError(
                f"{name}: its output embedding ran {len(calls)} times in one forward, expected once; {ADAPTER_HINT}"
            )
        head_input, head_output = calls[0].input, calls[0].output
        if head_input.dim() not in (3, 4) or not isinstance(head_output, Tensor):
            raise HostError(
                f"{name}: its output embedding got {tuple(head_input.shape)}, expected "
                f"[batch, sequence, hidden]; {ADAPTER_HINT}"
            )
        reached = [head_input.shape[0], head_input.shape[-2]]
        if reached != list(run.ids_shape):
            raise HostError(
                f"{name}: tokens of shape {tuple(run.ids_shape)} reach the output embedding as "
                f"{tuple(head_input.shape)}, so positions cannot be matched; {ADAPTER_HINT}"
            )
        if not any(call.module in tables(model, embed) for call in run.calls):
            raise HostError(f"{name}: its input embedding was not called in a forward; {ADAPTER_HINT}")
        if run.label_shift in (0, 1):
            kind["label_shift"] = run.label_shift
        elif run.label_shift is not None:
            logger.warning(
                "%s scores at its first position the label of column %d; expected column 0 or 1: the assignment loss "
                "takes %d, and may read other positions than the host's loss",
                name,
                run.label_shift,
                kind.get("label_shift", cls.label_shift),
            )
        same = [call.module for call in run.calls if same_tensor(call.output, head_input)]
        hidden = same[0] if same and [call.module for call in run.calls].count(same[0]) == 1 else None
        return cls(
            embed=embed,
            head=head,
            hidden=hidden,
            hidden_size=head_input.shape[-1],
            head_gives_logits=same_tensor(run.logits, head_output) and head_output._version == calls[0].version,
            honours_num_items=run.honours_num_items,
            **kind,
            towers=towers,
        )

    def measure_vision(self, model: nn.Module, processor: Any) -> int | None:
        """C, for a head that asks: by a run of the tower where it is not known; None without tower or processor."""
        if self.vision_size is None:
            with undisturbed(model):
                self.vision_size = tower_width(model, self.towers, processor)
        return self.vision_size

    def check_grown(self, model: nn.Module, old_size: int, example_inputs: dict[str, Any] | None = None) -> None:
        """Runs a grown host once on its new ids: some have other tables that ids go into, which do not grow.

        Raises `HostError`, and before an index beyond a table reaches a device, where it could not be survived.
        """
        tables = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        fixed = [n for n, t in tables.items() if t.dim() and len(t) == old_size and not t.is_floating_point()]
        reason = f"{fixed} has one entry for each old id" if fixed else ""

        def check(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and args[0].numel() and int(args[0].max()) >= len(module.weight):
                raise IndexError(f"id {int(args[0].max())} goes into a table of {len(module.weight)} rows")

        handles = [m.register_forward_pre_hook(check) for m in model.modules() if isinstance(m, nn.Embedding)]
        try:
            with undisturbed(model), torch.no_grad():
                inputs = example_inputs_of(model, self.embed, example_inputs, None)
                name = self.ids if self.ids in inputs else "input_ids"
                inputs[name] = inputs[name].clone()
                inputs[name][:, -1] = len(self.embed.weight) - 1
                if not reason and not self.unseen and not self.embed.weight.is_meta:
                    model(**inputs)
        except IndexError as error:
            reason = str(error)
        finally:
            for handle in handles:
                handle.remove()
        if reason:
            raise HostError(
                f"{type(model).__name__} has {old_size} vocabulary rows and cannot take more: {reason}; name special "
                "tokens that it already has: TPOConfig(heads={name: {'trigger': …, 'task_token': …}})"
            )

    def attach(self, model: nn.Module) -> list[Any]:
        """Hooks what else a host needs, when TPO is put on it; returns handles with `remove()`. Nothing by default."""
        return []

    def start_generation(self, model: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What `generate` is called with, made of what the user gave `model.tpo.generate`; by default the same."""
        return kwargs

    def generate(self, model: Any, **kwargs: Any) -> Any:
        """Generates from what `start_generation` made; by default the host's own `generate`."""
        return model.generate(**kwargs)

    @classmethod
    def media_root(cls, dataset: Any, record: dict[str, Any]) -> str | Path:
        """Folder that the paths of a record of such a dataset are relative to."""
        return "."

    @classmethod
    def num_frames(cls, sample: dict[str, Any]) -> list[int]:
        """Frames of each video in a sample of such a dataset."""
        return []

    @classmethod
    def trainer_class(cls, base: type) -> type:
        """The codebase's trainer in a form that can train, for `tpo run`; by default as it is."""
        return base


def _embeddings(model: nn.Module, name: str) -> tuple[nn.Module, nn.Module | None]:
    try:
        embed, head = input_embedding(model), output_embedding(model)
    except AttributeError as error:
        raise HostError(f"{name} does not say its embeddings ({error!r}); {ADAPTER_HINT}") from error
    if not isinstance(getattr(embed, "weight", None), Tensor):
        raise HostError(
            f"{name} has no input embedding with a weight (get_input_embeddings() gives {type(embed).__name__}), "
            f"expected one table of token embeddings; {ADAPTER_HINT}"
        )
    return embed, head


def tables(model: nn.Module, embed: nn.Module) -> list[nn.Module]:
    """The input embedding and those tied to it: encoder and decoder may each have a module for one matrix."""
    inside = set(embed.modules())
    tied = (m for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is embed.weight)
    return [embed, *(m for m in tied if m not in inside)]


def decoder_ids(model: Any, labels: Tensor, tokens: Mapping[str, HeadTokens]) -> Tensor:
    """Input of an encoder-decoder's decoder, made of its labels: the token behind a trigger is its task token."""
    ids = labels.clone()
    for head in tokens.values():
        follows = (labels[:, :-1] == head.trigger_id) & (labels[:, 1:] < 0)
        ids[:, 1:].masked_fill_(follows, head.task_id)
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=ids)
    start, pad = (_config_value(model, name) for name in ("decoder_start_token_id", "pad_token_id"))
    if start is None or pad is None:
        raise HostError(
            f"{type(model).__name__} does not say how its decoder's input is made of labels (decoder_start_token_id is "
            f"{start}, pad_token_id {pad}); give decoder_input_ids"
        )
    shifted = torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], 1)
    return shifted.masked_fill(shifted < 0, pad)


def _config_value(model: Any, name: str) -> int | None:
    configs = [model.config, model.config.get_text_config(decoder=True), getattr(model, "generation_config", None)]
    return next((v for v in (getattr(c, name, None) for c in configs) if v is not None), None)


def device_of(embed: nn.Module) -> torch.device:
    """Where an embedding runs; accelerate may keep its weights elsewhere between forwards."""
    hook = getattr(embed, "_hf_hook", None)
    devices = [getattr(part, "execution_device", None) for part in getattr(hook, "hooks", [hook])]
    runs_on = next((device for device in devices if device is not None), None)
    stands_on: torch.device = embed.weight.device
    return stands_on if runs_on is None or stands_on.type != "meta" else torch.device(runs_on)
