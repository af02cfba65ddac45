"""The dry run of a host: which module's output reaches the output embedding, and what the loss asks.

A large host is run on fake tensors, which hold no numbers, and few of its blocks that are made alike; a small
host is run as it is, which takes a tenth of the time. Where one way fails, the others are tried.

Suffixes: B batch, T sequence.
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
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from tpo_plugin.errors import HostError

logger = logging.getLogger(__name__)

ADAPTER_HINT = (
    "give example_inputs= to apply_tpo if the host needs more than input_ids, or write a host adapter: a subclass of "
    "tpo_plugin.Host registered by the hook register_patches (see patches/README.md)"
)


SMALL = 10_000_000
"""Parameters of the largest host, on the CPU, that is run as it is."""

_REAL, _FAKE, _FAKE_FEW = "real tensors", "fake tensors", "fake tensors, few blocks"
"""How a host is run."""


@dataclass
class ModuleCall:
    module: nn.Module
    input: Any
    output: Any
    version: int
    """Of the output's memory: a host may change it in place later (chameleon masks logits)."""


class Probe:
    """What one dry run saw. Holds every tensor, so that no storage is reused during the comparison."""

    def __init__(self) -> None:
        self.calls: list[ModuleCall] = []
        """In the order in which they ended."""
        self.ids_shape: tuple[int, ...] = ()
        self.logits: Tensor | None = None
        self.honours_num_items = False
        self.label_shift: int | None = None
        """How many columns behind the position that predicts it a label stands; None where it could not be followed."""


def head_of_logits(run: Probe, name: str) -> nn.Module:
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


def dry_run(model: nn.Module, embed: nn.Module, head: nn.Module | None, example: dict[str, Any] | None) -> Probe:
    reasons = []
    for way in (_REAL, _FAKE_FEW, _FAKE) if _is_small(model) else (_FAKE_FEW, _FAKE, _REAL):
        run = Probe()
        try:
            with _as_way(model, way) as mode, _probes(run, model, head), torch.no_grad():
                inputs = example_inputs_of(model, embed, example, mode)
                output = model(**inputs)
            run.logits, run.ids_shape = getattr(output, "logits", None), _ids(inputs).shape
        except Exception as error:  # on fake tensors a custom kernel, or a branch that asks for numbers
            reasons.append(f"{way}: {type(error).__name__}: {error}")
            continue
        with _as_way(model, way) as mode:
            _see_loss(run, model, example_inputs_of(model, embed, example, mode))
        return run
    given = "four text tokens" if example is None else f"{', '.join(example)}"
    raise HostError(f"{type(model).__name__} could not be run on {given} ({'; '.join(reasons)}); {ADAPTER_HINT}")


def _is_small(model: nn.Module) -> bool:
    parameters = list(model.parameters())
    return all(p.device.type == "cpu" for p in parameters) and sum(p.numel() for p in parameters) <= SMALL


@contextlib.contextmanager
def _as_way(model: nn.Module, way: str) -> Iterator[FakeTensorMode | None]:
    """Inside of it the model is run in one of the ways, and nothing of that stays."""
    with undisturbed(model):
        if way == _REAL:
            with torch.random.fork_rng(devices=[]):
                yield None
            return
        if way == _FAKE_FEW:
            _run_few_blocks(model)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode


def _run_few_blocks(model: nn.Module) -> None:
    """Blocks of a list that are made alike give what the first of them gave for inputs of the same shapes, in tensors
    of their own: without numbers nothing else tells them apart. Not the last one, in which the output embedding's
    input may be made. `undisturbed` undoes it."""
    for blocks in model.modules():
        if not isinstance(blocks, nn.ModuleList):
            continue
        given: dict[Any, Any] = {}
        for block in blocks[:-1]:
            if next(block.children(), None) is not None:  # an output embedding may stand in a list too
                vars(block)["forward"] = _RunOnce(block, given)


class _RunOnce:
    """The forward of a block, which is not run where `given` has what one made like it gave."""

    def __init__(self, block: nn.Module, given: dict[Any, Any]) -> None:
        self._forward, self._given = block.forward, given
        self._made = type(block), tuple((name, _described(tensor)) for name, tensor in block.named_parameters())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, form = tree_flatten((args, kwargs))
        key = self._made, str(form), tuple(map(_described, leaves))
        if key not in self._given:
            self._given[key] = self._forward(*args, **kwargs)
            return self._given[key]
        return tree_map_only(Tensor, torch.empty_like, self._given[key])


def _described(leaf: Any) -> Any:
    """All of a fake tensor; of others their value, where they are plain."""
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.device
    return leaf if isinstance(leaf, (bool, int, float, str, type(None))) else type(leaf)


def example_inputs_of(
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


def _see_loss(run: Probe, model: nn.Module, inputs: dict[str, Any]) -> None:
    """Fills in what the host's loss makes of labels and of `num_items_in_batch`; works on fake tensors."""
    follow = FollowLabels()
    try:
        with follow:
            run.honours_num_items = _honours_num_items(model, inputs, follow.label(_ids(inputs)))
    except Exception as error:  # an operator that takes no dispatch mode
        logger.debug("%s: labels cannot be followed: %r", type(model).__name__, error)
        with contextlib.suppress(Exception):  # a host that takes no labels cannot be trained, and `losses` says so
            run.honours_num_items = _honours_num_items(model, inputs, _ids(inputs))
    run.label_shift = follow.shift


def _honours_num_items(model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> bool:
    """Whether the loss depends on `num_items_in_batch`: asked of autograd. Where it does not, its mean is scaled by the
    counts instead, which is always right."""
    parameters = inspect.signature(model.forward).parameters
    if "num_items_in_batch" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        with torch.no_grad():
            model(**inputs, labels=labels)
        return False
    with torch.enable_grad():
        num_items = torch.tensor(2.0, device=labels.device, requires_grad=True)
        loss = model(**inputs, labels=labels, num_items_in_batch=num_items).loss
        (gradient,) = torch.autograd.grad(loss, num_items, allow_unused=True)
    return gradient is not None


class FollowLabels(TorchDispatchMode):
    """Follows labels to the cross entropy: each label is a number, that of its column, whatever the tensors hold.

    What is computed of labels alone is computed of these numbers too. So the shift is seen by value where tensors are
    fake, and hold none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, tuple[Tensor, Tensor]] = {}
        """By `id` a tensor, which is kept so that no other gets that, and its numbers."""
        self.shift: int | None = None
        """Column of the label that the first position is to predict, once the cross entropy was reached."""

    def label(self, ids: Tensor) -> Tensor:
        """Labels like these ids [B, T], to be followed."""
        labels = ids.clone()
        with unset_fake_temporarily():
            columns = torch.arange(labels.shape[-1]).expand(labels.shape).contiguous()
        self.known = {id(labels): (labels, columns)}
        return labels

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if self.shift is not None:
            return output
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        with unset_fake_temporarily():
            if func.name().startswith(("aten::nll_loss", "aten::cross_entropy")) and id(args[1]) in self.known:
                self.shift = int(self.known[id(args[1])][1].flatten()[0])
            elif isinstance(output, Tensor) and tensors and all(id(t) in self.known for t in tensors):
                own_args, own_kwargs = tree_map_only(Tensor, lambda t: self.known[id(t)][1], (args, kwargs or {}))
                self.known[id(output)] = output, func(*own_args, **own_kwargs | _on_cpu(kwargs))
        return output


def _on_cpu(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """For a copy to another device, which the numbers do not make."""
    return {"device": torch.device("cpu")} if kwargs and kwargs.get("device") is not None else {}


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, with each module's attributes, training flag, buffers and hooks put back afterwards.

    A forward may leave something on a module (qwen2_vl its last positions): a fake tensor must not stay there. It may
    also install hooks (transformers 5 those that collect hidden states, and a flag that says so).
    """
    before = [(module, dict(vars(module)), [dict(part) for part in _dicts(module)]) for module in model.modules()]
    for module, *_ in before:
        module.training = False
        if hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes would pack its weights anew, as fake ones
            module.support_avx512bf16_for_cpu = False
    try:
        yield
    finally:
        for module, attributes, parts in before:
            vars(module).clear()
            vars(module).update(attributes)
            for part, values in zip(_dicts(module), parts, strict=True):
                part.clear()
                part.update(values)


def _dicts(module: nn.Module) -> list[dict[Any, Any]]:
    """What a forward may change of a module in place; accelerate's offloading replaces parameters."""
    return [module._parameters, module._buffers, module._forward_hooks]


@contextlib.contextmanager
def _probes(run: Probe, model: nn.Module, head: nn.Module | None) -> Iterator[None]:
    def see(module: nn.Module, args: Any, output: Any) -> None:
        if module is head or (module is not model and isinstance(output, Tensor)):
            version = output._version if isinstance(output, Tensor) else 0
            run.calls.append(ModuleCall(module, args[0] if args else None, output, version))

    handles = [module.register_forward_hook(see) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def same_tensor(a: Any, b: Any) -> bool:
    """Whether two tensors are the same memory seen in the same way; `a[:, slice(0, None)]` is a new object of `a`."""
    return bool(
        isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and a.untyped_storage()._cdata == b.untyped_storage()._cdata
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.storage_offset() == b.storage_offset()
    )
