"""What one rank does for all, and where one fails: the others end soon, with its reason."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.distributed import distributed_c10d

from tpo_plugin.errors import TPOError

logger = logging.getLogger(__name__)

T = TypeVar("T")

KEY = "tpo/first_failure"
POLL_S, GRACE_S = 1.0, 20.0
"""How often a rank asks whether another has failed, and how long it may then take to end by itself."""


def joined_ranks() -> PartialState:
    """Which rank this is, of how many; joins them on their first call."""
    state = PartialState()
    if state.num_processes == 1 and state.device.type == "cpu" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState._reset_state()  # without an accelerator it joins only where it is told that there is none
        state = PartialState(cpu=True)
    return state


def on_main(job: Callable[[], T]) -> T | None:
    """Runs `job` on the main rank; its value there, None on the others. What it raises there, all ranks raise.

    The others raise a `TPOError` with its text. Every rank must call it.
    """
    state = joined_ranks()
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
        raise _OfMain(said[0])
    return value


class _OfMain(TPOError):
    """What the main rank raised, on another one."""


@contextmanager
def ending_together() -> Iterator[None]:
    """Around what all ranks do together; raises `TPOError` on a rank that ends because of another one.

    A rank that waits for one that has failed may wait for many minutes; after `GRACE_S` its process exits with 1.
    """
    state = joined_ranks()
    if state.num_processes == 1:
        yield
        return
    watch = _Watch(distributed_c10d._get_default_store())
    try:
        yield
    except Exception as error:
        mine = f"rank {state.process_index} failed first: {_sentence(error)}"
        first = watch.tell(None if _is_of_another(error) else mine)
        if first == mine or (first == _UNKNOWN and isinstance(error, _OfMain)):
            raise
        raise TPOError(first) from error
    finally:
        watch.ended.set()


class _Watch:
    """Looks into the store that the ranks meet at for the reason of the first that fails."""

    def __init__(self, store: Any) -> None:
        self.store, self.ended, self.reason = store, threading.Event(), ""
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self.ended.wait(POLL_S):
            try:
                if not self.store.check([KEY]):
                    continue
                self.reason = self.store.get(KEY).decode()
            except Exception:  # whatever the store raises when the rank that has it is gone
                self.reason = _UNKNOWN
            if not self.ended.wait(GRACE_S):
                logger.error("%s; this rank, which waits for it, ends", self.reason)
                os._exit(1)

    def tell(self, reason: str | None) -> str:
        """Says why this rank ends, or None where that is another's doing; returns the reason of the first that did."""
        if reason is None:
            time.sleep(2 * POLL_S)  # the other one told before it ended
            return self.reason or _UNKNOWN
        try:
            first: str = self.store.compare_set(KEY, "", reason).decode()
        except Exception:
            return self.reason or reason
        time.sleep(3 * POLL_S)  # the store may be this rank's, and end with it
        return first


_UNKNOWN = (
    "another rank ended without a word, as a process does that was killed, or where memory ran out; its own output, or "
    "the system's log, says more"
)


def _sentence(error: Exception) -> str:
    """What an error says; of one from a loader's process, in which its whole traceback stands, the last line."""
    text = str(error).strip()
    if "in DataLoader worker process" not in text.partition("\n")[0]:
        return f"{type(error).__name__}: {text}"
    return text.splitlines()[-1].removeprefix(f"{type(error).__module__}.")


def _is_of_another(error: Exception) -> bool:
    """Whether the main rank failed, or an exchange between the ranks, which it does when one of them is gone."""
    return isinstance(error, (torch.distributed.DistError, _OfMain)) or "/gloo/" in str(error) or "NCCL" in str(error)
