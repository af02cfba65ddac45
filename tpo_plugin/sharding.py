"""DeepSpeed's ZeRO-3 and FSDP2, under which a rank holds a part of each parameter: here they are whole, or have their
shape.

What says "collective" must be called by every rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

Tensors = Iterable[Tensor]


def split(tensors: Tensors) -> list[Tensor]:
    """Those of which this rank holds a part."""
    return [tensor for tensor in tensors if hasattr(tensor, "ds_id") or hasattr(tensor, "full_tensor")]


def shape(parameter: Tensor) -> torch.Size:
    """Shape of a parameter that is whole or split."""
    return getattr(parameter, "ds_shape", parameter.shape)


def gathered(parameters: Tensors, *, changed: bool = False) -> AbstractContextManager[None]:
    """Inside, what ZeRO-3 split is whole on every rank. Collective.

    With `changed`, what the first rank writes into them is kept, on all ranks; otherwise nothing that is written.
    """
    parts = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not parts:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parts, modifier_rank=0 if changed else None)


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, each of its own. Collective."""
    with gathered(tensors.values()):
        found = {n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in tensors.items()}
        return {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in found.items()}


def write(values: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Writes whole values, the same on each rank, into the tensors of these names. Collective."""
    with torch.no_grad(), gathered([tensors[name] for name in values], changed=True):
        for name, value in values.items():
            tensors[name].copy_(part(value, tensors[name]))


def write_trained(value: Tensor, parameter: nn.Parameter) -> None:
    """`write`, of a parameter that an engine trains already: DeepSpeed's optimizer has a float32 copy. Collective."""
    write({"": value}, {"": parameter})
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, value.to(parameter.device))


def local(tensor: Tensor) -> Tensor:
    """This rank's part of what FSDP2 split; a whole tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def part(value: Tensor, like: Any) -> Tensor:
    """A whole value, split as FSDP2 split the other, if it did. Collective."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def at_rest(model: nn.Module) -> None:
    """Has the parts in the model again where FSDP2 left whole tensors in it."""
    for module in model.modules():
        if hasattr(module, "unshard") and hasattr(module, "reshard"):
            module.reshard()


@contextmanager
def shaped(model: nn.Module) -> Iterator[None]:
    """Inside, split parameters are zeros of their whole shape, which take no memory: enough for a dry run."""
    parts = [(parameter, parameter.data) for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    for parameter, data in parts:
        parameter.data = data.new_zeros(()).expand(parameter.ds_shape)
    try:
        yield
    finally:
        for parameter, data in parts:
            parameter.data = data


def join(module: nn.Module, host: nn.Module) -> None:
    """Gives new parameters the precision of a host that was split when it was loaded, and one value on all ranks.

    DeepSpeed does both itself where nothing is split yet. Its optimizer keeps float32 copies. Collective.
    """
    parts = [parameter for parameter in host.parameters() if hasattr(parameter, "ds_id")]
    if not parts:
        return
    dtype = next(part.dtype for part in parts if part.is_floating_point())
    for parameter in module.parameters():
        if not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(dtype)
            torch.distributed.broadcast(parameter.data, 0)


@contextmanager
def outside_forward(model: nn.Module) -> Iterator[None]:
    """Inside, parameters are whole that are read outside of a forward, and belong to no module that runs. Collective.

    With FSDP2 all that is in no unit of its own, as heads; with ZeRO-3 those of modules that have parts, as
    `image_newline` beside a vision tower that transformers 5 runs before the forward.
    """
    if hasattr(model, "unshard"):
        model.unshard()
    with gathered([p for m in model.modules() if any(m.children()) for p in m.parameters(recurse=False)]):
        yield


def most(number: int, device: torch.device) -> int:
    """The highest number of any rank. Collective."""
    if not torch.distributed.is_initialized():
        return number
    found = torch.tensor(number, device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return int(found)


def writes(tensors: Tensors) -> bool:
    """Whether this rank writes a file that has the tensors: all do, but of split ones the first."""
    return not split(tensors) or torch.distributed.get_rank() == 0
