"""What one rank does for all, so that all go on, or fail, together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from tpo_plugin.errors import TPOError

T = TypeVar("T")


def on_main(job: Callable[[], T]) -> T | None:
    """Runs `job` on the main rank; its value there, None on the others. What it raises there, all ranks raise.

    The others raise a `TPOError` with its text. Every rank must call it.
    """
    state = PartialState()
    value: T | None = None
    failed: list[Exception | None] = [None]
    if state.is_main_process:
        try:
            value = job()
        except Exception as error:
            failed = [error]
    said = [None if failed[0] is None else str(failed[0])]
    if state.num_processes > 1:
        broadcast_object_list(said)
    if failed[0] is not None:
        raise failed[0]
    if said[0] is not None:
        raise TPOError(said[0])
    return value
