"""Seconds that add up over the calls of a demo, also over those that were interrupted."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Stopwatch:
    """Counts a clock's seconds inside a `with`, on top of what a file says, and writes them there every few seconds."""

    def __init__(self, path: Path, clock: Callable[[], float], every_s: float = 5.0) -> None:
        self._path, self._clock, self._every_s = path, clock, every_s
        before: dict[str, Any] = (
            json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"seconds": 0.0, "calls": 0}
        )
        self._before: float = before["seconds"]
        self.seconds: float = self._before
        """So far, over all calls."""
        self.calls: int = before["calls"] + 1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Stopwatch:
        self._begin = self._clock()
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        self._write()

    def _keep(self) -> None:
        while not self._stop.wait(self._every_s):
            self._write()

    def _write(self) -> None:
        self.seconds = self._before + (self._clock() - self._begin)
        text = json.dumps({"seconds": self.seconds, "calls": self.calls})
        temporary = self._path.with_name(self._path.name + ".new")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(self._path)
