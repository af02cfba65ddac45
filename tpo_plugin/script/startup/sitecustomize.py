"""Imported by Python at its start where `tpo run` put this folder first on PYTHONPATH.

A script may also start Pythons that train nothing, of any version and without tpo-plugin: they go on as they were.
"""

import sys
import traceback
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent


class _Refusing:
    """Ends a Python that cannot use tpo-plugin when it imports transformers' trainer: it would train without TPO."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname != "transformers.trainer":
            return
        sys.stderr.write(self.reason)
        sys.stderr.write(f"tpo run: this Python ({sys.executable}) cannot use tpo-plugin; is it installed there?\n")
        raise SystemExit(1)


def _run_hidden() -> None:
    """Runs the environment's own sitecustomize, which this one hides."""
    spec = PathFinder.find_spec("sitecustomize", [path for path in sys.path if Path(path or ".").resolve() != HERE])
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


try:
    from tpo_plugin.script.imports import install

    install()
except Exception:
    sys.meta_path.insert(0, _Refusing(traceback.format_exc()))
_run_hidden()
