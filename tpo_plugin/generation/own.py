"""The host's own `generate` with TPO: for a pipeline, a trainer, or a script that knows nothing of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.generation.generate import generate
from tpo_plugin.generation.replay import start_of
from tpo_plugin.hooks import Hooks


class HostGenerate:
    """`model.generate` while TPO is on: it returns what it always does, with a task token behind each trigger.

    What the heads made of the answer is `model.tpo.last_generated`. Where the host cannot place a task token, it warns
    once and generates without.
    """

    def __init__(self, hooks: Hooks, inner: Callable[..., Any]) -> None:
        functools.update_wrapper(self, inner, ("__module__", "__name__", "__qualname__", "__doc__"), ())
        del vars(self)["__wrapped__"]
        self.hooks, self.inner = hooks, inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hooks, given = self.hooks, kwargs
        if args:
            names = [n for n, p in self.__signature__.parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
            given = {**dict(zip(names, args, strict=False)), **kwargs}
        starts = given.get("inputs") is not None or start_of(hooks.model, hooks.host, given) is not None
        if hooks.now.session is not None or hooks.now.aside or not starts:
            return self.inner(*args, **kwargs)
        try:
            made = generate(hooks, **given)
        except HostError as error:
            hooks.warn_once(f"{type(hooks.model).__name__}.generate answers without heads: {error}")
            return self.inner(*args, **kwargs)
        own, made.output = made.output, None  # with its cache, which is the caller's to keep
        return made.sequences if own is None else own

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.inner)


def refuse_continuous_batching(*args: Any, **kwargs: Any) -> Any:
    """`model.init_continuous_batching` while TPO is on, which `generate_batch` needs too. Raises `TPOError`."""
    raise TPOError(
        "continuous batching (generate_batch) puts no task token behind a trigger, so that no head would answer; "
        "expected model.generate or model.tpo.generate with a batch, or `tpo serve`; remove_tpo(model) gives it back"
    )
