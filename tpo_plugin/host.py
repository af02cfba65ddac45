"""The hook points of a host, found by one dry run on fake tensors (spec: the tensor that reaches the output embedding).

Suffixes: B batch, T sequence, D width of the output embedding's input, E width of the input embedding's output.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tpo_plugin.errors import HostError
from tpo_plugin.seen import tower_width, vision_towers
from tpo_plugin.vocabulary import input_embedding, output_embedding

logger = logging.getLogger(__name__)

ADAPTER_HINT = (
    "give example_inputs= to apply_tpo if the host needs more than input_ids, or write a host adapter: a subclass of "
    "tpo_plugin.Host registered by the hook register_patches (see patches/README.md)"
)


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
    """Labels stand so many columns behind the position that predicts them: 0 in an encoder-decoder."""
    media_first: bool = False
    """Whether the states of media stand before those of the ids, which have no placeholders for them: GIT."""
    unseen: str = ""
    """Why it could not be run on text alone; it is looked at again with the inputs of its first forward."""
    towers: Sequence[nn.Module] = ()
    """Vision towers, whose outputs heads may look at."""
    vision_size: int | None = None
    """C, the width of the vision tower's output, where it is known."""

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
        kind["media_first"] = getattr(config, "model_type", None) == "git"
        towers = vision_towers(model)
        try:
            run = _dry_run(model, embed, head, example_inputs)
        except HostError as error:
            if example_inputs is not None or head is None or not isinstance(getattr(head, "weight", None), Tensor):
                raise
            size = head.weight.shape[-1]
            return cls(embed, head, None, size, False, False, **kind, unseen=str(error), towers=towers)
        if head is None:
            head = _head_of_logits(run, name)
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
        same = [call.module for call in run.calls if _same_tensor(call.output, head_input)]
        hidden = same[0] if same and [call.module for call in run.calls].count(same[0]) == 1 else None
        return cls(
            embed=embed,
            head=head,
            hidden=hidden,
            hidden_size=head_input.shape[-1],
            head_gives_logits=_same_tensor(run.logits, head_output) and head_output._version == calls[0].version,
            honours_num_items=run.honours_num_items,
            **kind,
            towers=towers,
        )

    def measure_vision(self, model: nn.Module, processor: Any) -> int | None:
        """C, for a head that asks: by a run of the tower where it is not known; None without tower or processor."""
        if self.vision_size is None:
            with _undisturbed(model):
                self.vision_size = tower_width(model, self.towers, processor)
        return self.vision_size

    def check_grown(self, model: nn.Module, old_size: int, example_inputs: dict[str, Any] | None = None) -> None:
        """Runs a grown host once on its new ids: some have other tables that ids go into, which do not grow.

        Raises `HostError`, and before an index beyond a table reaches a device, where it could not be survived.
        """
        tables = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        fixed = [n for n, t in tables.items() if t.dim() and len(t) == old_size and not t.is_floating_point()]
        reason = f"{fixed} has one entry for each old id" if fixed else ""

        def check(module: nn.Module, args: tuple) -> None:
            if args and isinstance(args[0], Tensor) and args[0].numel() and int(args[0].max()) >= len(module.weight):
                raise IndexError(f"id {int(args[0].max())} goes into a table of {len(module.weight)} rows")

        handles = [m.register_forward_pre_hook(check) for m in model.modules() if isinstance(m, nn.Embedding)]
        try:
            with _undisturbed(model), torch.no_grad():
                inputs = _example(model, self.embed, example_inputs, None)
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

    records: ClassVar[str | None] = None
    """Attribute of the codebase's own datasets that holds their list of LLaVA records, for `tpo run`."""

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


@dataclass
class _ModuleCall:
    module: nn.Module
    input: Any
    output: Any
    version: int
    """Of the output's memory: a host may change it in place later (chameleon masks logits)."""


class _Run:
    """What one dry run saw. Holds every tensor, so that no storage is reused during the comparison."""

    def __init__(self) -> None:
        self.calls: list[_ModuleCall] = []
        """In the order in which they ended."""
        self.ids_shape: tuple[int, ...] = ()
        self.logits: Tensor | None = None
        self.honours_num_items = False


def _head_of_logits(run: _Run, name: str) -> nn.Module:
    """The matrix whose output has the width of the logits, for a model that names no output embedding."""
    if run.logits is not None:
        for call in reversed(run.calls):
            weight = getattr(call.module, "weight", None)
            wide = isinstance(call.output, Tensor) and call.output.shape[-1] == run.logits.shape[-1]
            if wide and isinstance(weight, Tensor) and weight.dim() == 2 and len(weight) == run.logits.shape[-1]:
                return call.module
    raise HostError(
        f"{name} has no output embedding (get_output_embeddings() is None) and no matrix that makes its logits, "
        "expected a model with a language-modelling head, as AutoModelForCausalLM or AutoModelForImageTextToText load; "
        f"{ADAPTER_HINT}"
    )


def _dry_run(model: nn.Module, embed: nn.Module, head: nn.Module | None, example: dict[str, Any] | None) -> _Run:
    reasons = []
    for fake in (True, False):
        run = _Run()
        try:
            with _undisturbed(model), _probes(run, model, head), _tensors(fake) as mode, torch.no_grad():
                inputs = _example(model, embed, example, mode)
                output = model(**inputs)
            run.logits, run.ids_shape = getattr(output, "logits", None), _ids(inputs).shape
        except Exception as error:  # a custom kernel or a data-dependent branch; the second try is the real thing
            reasons.append(f"{'fake' if fake else 'real'} tensors: {type(error).__name__}: {error}")
            continue
        with _undisturbed(model), _tensors(fake) as mode:
            run.honours_num_items = _honours_num_items(model, _example(model, embed, example, mode))
        return run
    given = "four text tokens" if example is None else f"{', '.join(example)}"
    raise HostError(f"{type(model).__name__} could not be run on {given} ({'; '.join(reasons)}); {ADAPTER_HINT}")


def _tensors(fake: bool) -> contextlib.AbstractContextManager[FakeTensorMode | None]:
    return FakeTensorMode(allow_non_fake_inputs=True) if fake else contextlib.nullcontext()


def _example(
    model: nn.Module, embed: nn.Module, given: dict[str, Any] | None, mode: FakeTensorMode | None
) -> dict[str, Any]:
    ids = torch.arange(4, device=embed.weight.device).add(10).remainder(embed.weight.shape[0])[None]
    decodes = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    if given is not None:
        convert = (lambda t: mode.from_tensor(t)) if mode is not None else (lambda t: t)
        inputs = {k: convert(v) if isinstance(v, Tensor) else v for k, v in given.items()}
    else:
        inputs = {"input_ids": ids}
    if decodes and "decoder_input_ids" not in inputs:
        rows = next((len(v) for v in inputs.values() if isinstance(v, Tensor)), 1)
        inputs["decoder_input_ids"] = ids.expand(rows, -1).clone()
    return inputs


def _ids(inputs: dict[str, Any]) -> Tensor:
    """The tokens that reach the output embedding."""
    return inputs["decoder_input_ids"] if "decoder_input_ids" in inputs else inputs["input_ids"]


def _honours_num_items(model: nn.Module, inputs: dict[str, Any]) -> bool:
    """Whether the loss depends on `num_items_in_batch`: asked of autograd, so it works on fake tensors."""
    parameters = inspect.signature(model.forward).parameters
    if "num_items_in_batch" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return False
    try:
        with torch.enable_grad():
            num_items = torch.tensor(2.0, device=_ids(inputs).device, requires_grad=True)
            loss = model(**inputs, labels=_ids(inputs), num_items_in_batch=num_items).loss
            (gradient,) = torch.autograd.grad(loss, num_items, allow_unused=True)
    except Exception as error:  # then its mean is scaled by the counts instead, which is always right
        logger.debug("%s: num_items_in_batch is not honoured: %r", type(model).__name__, error)
        return False
    return gradient is not None


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, with each module's attributes, training flag, buffers and hooks put back afterwards.

    A forward may leave something on a module (qwen2_vl its last positions): a fake tensor must not stay there. It may
    also install hooks (transformers 5 those that collect hidden states, and a flag that says so).
    """
    before = [
        (module, dict(vars(module)), dict(module._buffers), dict(module._forward_hooks)) for module in model.modules()
    ]
    for module, *_ in before:
        module.training = False
        if hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes would pack its weights anew, as fake ones
            module.support_avx512bf16_for_cpu = False
    try:
        yield
    finally:
        for module, attributes, buffers, hooks in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
            module._forward_hooks.clear()
            module._forward_hooks.update(hooks)


@contextlib.contextmanager
def _probes(run: _Run, model: nn.Module, head: nn.Module | None) -> Iterator[None]:
    def see(module: nn.Module, args: Any, output: Any) -> None:
        if module is head or (module is not model and isinstance(output, Tensor)):
            version = output._version if isinstance(output, Tensor) else 0
            run.calls.append(_ModuleCall(module, args[0] if args else None, output, version))

    handles = [module.register_forward_hook(see) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _same_tensor(a: Any, b: Any) -> bool:
    """Whether two tensors are the same memory seen in the same way; `a[:, slice(0, None)]` is a new object of `a`."""
    return bool(
        isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and a.untyped_storage()._cdata == b.untyped_storage()._cdata
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.storage_offset() == b.storage_offset()
    )
