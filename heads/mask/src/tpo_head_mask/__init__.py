"""The mask head: SAM 2, prompted by the `<tracking>` token, and `<track_box>` for a box that the user gives."""

from collections.abc import Callable
from typing import Any

import tpo_plugin as tpo


@tpo.hookimpl
def register_heads(register: Callable[..., None]) -> None:
    register(
        "mask",
        head="tpo_head_mask.head:MaskHead",
        config="tpo_head_mask.config:MaskConfig",
        codec="tpo_head_mask.codec:MaskCodec",
        trigger="<track_begin>",
        task_token="<tracking>",
        input_token="<track_box>",
    )


@tpo.hookimpl
def register_commands(app: Any) -> None:
    """Adds `tpo score-masks`."""
    from tpo_head_mask.commands import add_commands

    add_commands(app)


@tpo.hookimpl
def register_formats(register: Callable[..., None]) -> None:
    from tpo_head_mask.formats import FORMATS

    for name, target in FORMATS.items():
        register(name, f"tpo_head_mask.formats.{target}")
