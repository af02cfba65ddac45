"""Processes that work for another one."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Lets this process, which `multiprocessing` started, end where its parent does, however that ends.

    A pool's process goes on with its work otherwise, and then waits for more for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a process that works for another"

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
