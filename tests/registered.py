"""A head of a test as an installed plugin, for as long as the test needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import tpo_plugin as tpo


@contextmanager
def registered(name: str, head: type[tpo.TaskHead]) -> Iterator[str]:
    """Its name; the tokens are `<name_begin>` and `<name_task>`."""
    plugin = ModuleType(f"{name}_plugin")

    @tpo.hookimpl
    def register_heads(register: Callable[..., None]) -> None:
        register(name, head=head, trigger=f"<{name}_begin>", task_token=f"<{name}_task>")

    plugin.register_heads = register_heads  # type: ignore[attr-defined]
    tpo.register_plugin(plugin, name)
    try:
        yield name
    finally:
        tpo.unregister_plugin(name)
