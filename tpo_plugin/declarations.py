"""Checks of what a head declares: a misspelt name would be ignored in silence. No torch in here."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection
from typing import Any

from tpo_plugin.errors import TPOError, did_you_mean

_NEAR_PARAMETER, _NEAR_METHOD = 0.7, 0.85
"""Similarity, 0 to 1, from which a name is taken for a misspelt one. Helper methods may be named freely."""


def check_parameters(
    function: Callable[..., Any], given: Collection[str], options: Collection[str], where: str, *, bound: bool = True
) -> None:
    """Checks a function that the core calls with `given` by position and with those of `options` that it declares.

    A parameter with a default of its own may have any name that is not near one of the core's. `bound`: whether `self`
    comes first. Raises `TPOError` that begins with `where`.
    """
    parameters = list(inspect.signature(function).parameters.values())[int(bound) :]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    order = list(given)
    for place, parameter in enumerate(named):
        name = parameter.name
        if name in order and order.index(name) != place:
            raise TPOError(f"{where}: parameter {name!r} is number {place + 1}; expected {', '.join(order)} first")
        if place < len(order) or name in options:
            continue
        near = difflib.get_close_matches(name, [*given, *options], n=1, cutoff=_NEAR_PARAMETER)
        if near or parameter.default is parameter.empty:
            raise TPOError(f"{where}: parameter {name!r} is never given{did_you_mean(name, options)}")


def check_names(cls: type, base: type, where: str) -> None:
    """Refuses a public name of `cls` that `base` does not have, but for one that is very near.

    Raises `TPOError` that begins with `where`.
    """
    known = [name for kind in base.__mro__ if kind.__module__.startswith("tpo_plugin.") for name in vars(kind)]
    known = [name for name in known if not name.startswith("_")]
    for kind in cls.__mro__:
        for name in vars(kind):
            if issubclass(base, kind) or name.startswith("_") or hasattr(base, name):
                continue
            near = difflib.get_close_matches(name, known, n=1, cutoff=_NEAR_METHOD)
            if near:
                raise TPOError(f"{where}: {kind.__name__}.{name} is never used; did you mean {near[0]!r}?")


def check_fields(fields: Any, where: str) -> None:
    """Refuses what does not say names of fields, as the string ("boxes") that was to be a tuple."""
    if fields is not None and (
        isinstance(fields, str) or not isinstance(fields, Collection) or not all(isinstance(f, str) for f in fields)
    ):
        raise TPOError(f"{where}: fields is {fields!r}; expected a tuple or mapping of names, or None")
