"""Pickles of plain values: lists, dicts, texts and numbers, without a class being looked up or code being called."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from tpo_plugin.errors import RecordError


class _Plain(pickle.Unpickler):
    """Loads no class and no function, so that nothing in the file can run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}; expected plain values alone")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside; expected plain values alone")


def read_pickle(path: Path) -> Any:
    """The values of a pickle, also one of Python 2. Raises `RecordError`, for a file that would load a class too."""
    try:
        with path.open("rb") as file:
            return _Plain(file, encoding="utf-8").load()
    except Exception as error:  # a damaged pickle raises anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise RecordError(f"cannot be read as a pickle of plain values: {reason}", file=str(path)) from error
