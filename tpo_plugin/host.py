"""The hook points of a host, found by one dry run on fake tensors (spec: the tensor that reaches the output embedding).

Suffixes: B batch, T sequence, D width of the output embedding's input, E width of the input embedding's output.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tpo_plugin.errors import HostError

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

    @classmethod
    def locate(cls, model: nn.Module, example_inputs: dict[str, Any] | None = None) -> Host:
        """Finds the hook points of a Hugging Face model, changing nothing.

        `example_inputs` are what its forward needs, by default four text tokens. Raises `HostError` with what
        is missing.
        """
        name = type(model).__name__
        embed, head = _embeddings(model, name)
        run = _dry_run(model, embed, head, example_inputs)
        if len(run.head_inputs) != 1:
            raise HostError(
                f"{name}: its output embedding ran {len(run.head_inputs)} times in one forward, "
                f"expected once; {ADAPTER_HINT}"
            )
        head_input, head_output = run.head_inputs[0], run.head_outputs[0]
        if head_input.dim() != 3 or not isinstance(head_output, Tensor) or head_output.dim() != 3:
            raise HostError(
                f"{name}: its output embedding got {tuple(head_input.shape)}, expected "
                f"[batch, sequence, hidden]; {ADAPTER_HINT}"
            )
        if not any(e.shape[:-1] == head_input.shape[:-1] for e in run.embedded):
            raise HostError(
                f"{name}: its input embedding gave {[tuple(e.shape) for e in run.embedded]} for a sequence that "
                f"reaches the output embedding as {tuple(head_input.shape)}, so positions cannot be "
                f"matched; {ADAPTER_HINT}"
            )
        same = [module for module, output in run.outputs if _same_tensor(output, head_input)]
        hidden = same[0] if same and [m for m, _ in run.outputs].count(same[0]) == 1 else None
        return cls(
            embed=embed,
            head=head,
            hidden=hidden,
            hidden_size=head_input.shape[-1],
            head_gives_logits=run.logits is not None and _same_tensor(run.logits, head_output),
            honours_num_items=run.honours_num_items,
        )


def _embeddings(model: nn.Module, name: str) -> tuple[nn.Module, nn.Module]:
    found = {}
    for kind in ("input", "output"):
        try:
            found[kind] = getattr(model, f"get_{kind}_embeddings")()
        except (AttributeError, NotImplementedError) as error:
            raise HostError(f"{name} does not say its {kind} embedding ({error!r}); {ADAPTER_HINT}") from error
        if found[kind] is None:
            raise HostError(
                f"{name} has no {kind} embedding (get_{kind}_embeddings() is None), expected a model with a "
                f"language-modelling head, as AutoModelForCausalLM or AutoModelForImageTextToText load; {ADAPTER_HINT}"
            )
    return found["input"], found["output"]


class _Run:
    """What one dry run saw. Holds every tensor, so that no storage is reused during the comparison."""

    def __init__(self) -> None:
        self.outputs: list[tuple[nn.Module, Tensor]] = []
        self.embedded: list[Tensor] = []
        self.head_inputs: list[Tensor] = []
        self.head_outputs: list[Any] = []
        self.logits: Tensor | None = None
        self.honours_num_items = False


def _dry_run(model: nn.Module, embed: nn.Module, head: nn.Module, example_inputs: dict[str, Any] | None) -> _Run:
    reasons = []
    for fake in (True, False):
        run = _Run()
        try:
            with _undisturbed(model), _probes(run, model, embed, head), _tensors(fake) as mode, torch.no_grad():
                output = model(**_example(embed, example_inputs, mode))
            run.logits = getattr(output, "logits", None)
        except Exception as error:  # a custom kernel or a data-dependent branch; the second try is the real thing
            reasons.append(f"{'fake' if fake else 'real'} tensors: {type(error).__name__}: {error}")
            continue
        with _undisturbed(model), _tensors(fake) as mode:
            run.honours_num_items = _honours_num_items(model, _example(embed, example_inputs, mode))
        return run
    given = "example_inputs" if example_inputs else "four text tokens"
    raise HostError(f"{type(model).__name__} could not be run on {given} ({'; '.join(reasons)}); {ADAPTER_HINT}")


def _tensors(fake: bool) -> contextlib.AbstractContextManager[FakeTensorMode | None]:
    return FakeTensorMode(allow_non_fake_inputs=True) if fake else contextlib.nullcontext()


def _example(embed: nn.Module, example_inputs: dict[str, Any] | None, mode: FakeTensorMode | None) -> dict[str, Any]:
    if example_inputs is not None:
        convert = (lambda t: mode.from_tensor(t)) if mode is not None else (lambda t: t)
        return {k: convert(v) if isinstance(v, Tensor) else v for k, v in example_inputs.items()}
    weight = embed.weight
    ids = torch.arange(4, device=weight.device).add(10).remainder(weight.shape[0])[None]
    return {"input_ids": ids}


def _honours_num_items(model: nn.Module, inputs: dict[str, Any]) -> bool:
    """Whether the loss depends on `num_items_in_batch`: asked of autograd, so it works on fake tensors."""
    parameters = inspect.signature(model.forward).parameters
    if "num_items_in_batch" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return False
    try:
        with torch.enable_grad():
            num_items = torch.tensor(2.0, device=inputs["input_ids"].device, requires_grad=True)
            loss = model(**inputs, labels=inputs["input_ids"], num_items_in_batch=num_items).loss
            (gradient,) = torch.autograd.grad(loss, num_items, allow_unused=True)
    except Exception as error:  # then its mean is scaled by the counts instead, which is always right
        logger.debug("%s: num_items_in_batch is not honoured: %r", type(model).__name__, error)
        return False
    return gradient is not None


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, with each module's attributes, training flag and buffers put back afterwards.

    A forward may leave something on a module (qwen2_vl its last positions): a fake tensor must not stay there.
    """
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    for module, _, _ in before:
        module.training = False
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


@contextlib.contextmanager
def _probes(run: _Run, model: nn.Module, embed: nn.Module, head: nn.Module) -> Iterator[None]:
    def see(module: nn.Module, args: Any, output: Any) -> None:
        if module is head:
            run.head_inputs.append(args[0])
            run.head_outputs.append(output)
        elif module is not model and isinstance(output, Tensor):
            run.outputs.append((module, output))
            if module is embed:
                run.embedded.append(output)

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
