"""Packages that come with an extra, and what is said where one is missing. No torch in here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tpo_plugin.errors import TPOError

EXTRAS = {
    **dict.fromkeys(("typer", "rich", "yaml", "PIL", "fsspec"), "cli"),
    **dict.fromkeys(("peft", "filelock", "torchvision"), "train"),
    **dict.fromkeys(("av", "decord"), "video"),
    **dict.fromkeys(("starlette", "uvicorn", "prometheus_client"), "serve"),
    **dict.fromkeys(("gradio", "fastapi"), "app"),
    **dict.fromkeys(("aiohttp", "zstandard"), "remote"),
    "pyarrow": "parquet",
    "datasets": "datasets",
    "deepspeed": "deepspeed",
    "torchcodec": "torchcodec",
}
"""The extra of tpo-plugin that brings a package, by the name that is imported."""


class MissingPackage(TPOError, ImportError):
    """A package is not installed that comes with an extra."""


@contextmanager
def needed(extra: str | None = None) -> Iterator[None]:
    """Imports within may be missing: one that comes with an extra is a `MissingPackage` with the line for pip.

    `extra` is the one that brings all that is imported; by default the first that brings the package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        line = f"pip install 'tpo-plugin[{extra or EXTRAS[package]}]'"
        raise MissingPackage(f"the package {package} is not installed; {line}") from error
