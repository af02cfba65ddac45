"""DeepSpeed's ZeRO-3, under which a rank holds a part of each parameter: here they are whole, or have their shape.

What says "collective" must be called by every rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

Parameters = Iterable[nn.Parameter]


def split(parameters: Parameters) -> list[nn.Parameter]:
    """Those of which this rank holds a part."""
    return [parameter for parameter in parameters if hasattr(parameter, "ds_id")]


def shape(parameter: Tensor) -> torch.Size:
    """Shape of a parameter that is whole or split."""
    return getattr(parameter, "ds_shape", parameter.shape)


def gathered(parameters: Parameters, *, changed: bool = False) -> AbstractContextManager[None]:
    """Inside, the parameters are whole on every rank. Collective.

    With `changed`, what the first rank writes into them is kept, on all ranks; otherwise nothing that is written.
    """
    parts = split(parameters)
    if not parts:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parts, modifier_rank=0 if changed else None)


@contextmanager
def shaped(model: nn.Module) -> Iterator[None]:
    """Inside, split parameters are zeros of their whole shape, which take no memory: enough for a dry run."""
    parts = [(parameter, parameter.data) for parameter in split(model.parameters())]
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
    parts = split(host.parameters())
    if not parts:
        return
    dtype = next(part.dtype for part in parts if part.is_floating_point())
    for parameter in module.parameters():
        if not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(dtype)
            torch.distributed.broadcast(parameter.data, 0)


def writes(parameters: Parameters) -> bool:
    """Whether this rank writes a file that has the parameters: all do, but of split ones the first."""
    return not split(parameters) or torch.distributed.get_rank() == 0
