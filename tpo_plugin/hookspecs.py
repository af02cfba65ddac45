"""The whole plugin contract: four hooks. A plugin is a module that an entry point in group `tpo_plugin` names.

[project.entry-points.tpo_plugin]
point = "tpo_head_point"
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy

PROJECT = "tpo_plugin"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_heads(register: Callable[..., None]) -> None:
    """Called once when plugins are loaded.

    `register(name, head=, config=, trigger=, task_token=, input_token=None, codec=None, default=True)`: `name` is the
    head's checkpoint key, config key and log prefix. `head` is a `TaskHead` class, `config` a `HeadConfig` dataclass,
    and `codec`, for a head that reads its records without its network, a `TaskCodec` class that the head inherits. Each
    is given as the class or, to keep listing fast, as a `"module:Class"` string. A head with `default=False`, as one
    that does the same as another, is applied only where it is named.
    """


@hookspec
def register_patches(register: Callable[..., None]) -> None:
    """Called once when plugins are loaded: `register(name, host=, matches=)` teaches a host codebase.

    `matches(model) -> bool` says whether a model belongs to it; `host` is a subclass of `tpo_plugin.Host`, as the class
    or a `"module:Class"` string. The first patch that matches is taken; otherwise the generic Hugging Face host.
    """


@hookspec
def register_commands(app: Any) -> None:
    """Called when `tpo` starts: add commands to the typer `app`. Import heavy packages inside the command."""


@hookspec
def register_formats(register: Callable[..., None]) -> None:
    """Called when `tpo convert` starts: `register(name, format)` teaches a layout in which data are published.

    `format` is a subclass of `tpo_plugin.convert.Format`, as the class or a `"module:Class"` string.
    """
