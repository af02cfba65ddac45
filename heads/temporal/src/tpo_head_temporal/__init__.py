"""The temporal head: spans and a saliency curve for each `<temp>` token."""

from collections.abc import Callable
from typing import Any

import tpo_plugin as tpo


@tpo.hookimpl
def register_heads(register: Callable[..., None]) -> None:
    register(
        "temporal",
        head="tpo_head_temporal.head:TemporalHead",
        config="tpo_head_temporal.config:TemporalConfig",
        codec="tpo_head_temporal.codec:TemporalCodec",
        trigger="<time_begin>",
        task_token="<temp>",
    )


@tpo.hookimpl
def register_commands(app: Any) -> None:
    """Adds `tpo import cg-detr`, `tpo cache-features` and `tpo evaluate-moments`."""
    from tpo_head_temporal import importing
    from tpo_head_temporal.commands import register

    importing.register(app)
    register(app)


@tpo.hookimpl
def register_formats(register: Callable[..., None]) -> None:
    from tpo_head_temporal.formats import FORMATS

    for name, target in FORMATS.items():
        register(name, f"tpo_head_temporal.formats.{target}")
