"""Imported by Python at its start where `tpo run` put this folder first on PYTHONPATH.

A script may also start Pythons of its own, of any version and without tpo-plugin: they go on as if it were not there.
"""

import os
import sys
import traceback
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

HERE = os.path.dirname(os.path.realpath(__file__))
SERVED = "TPO_SCRIPT_SERVED"
"""Set for what a Python that can use tpo-plugin starts: the script's ranks, its tools."""


class _Refusing:
    """Ends a Python that cannot use tpo-plugin when it imports transformers' trainer: it would train without TPO."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname != "transformers.trainer":
            return
        sys.stderr.write(self.reason)
        sys.stderr.write(
            "tpo run: this Python (" + sys.executable + ") cannot use tpo-plugin; is it installed there?\n"
        )
        raise SystemExit(1)


def _others(paths):  # type: ignore[no-untyped-def]  # any Python 3 may read this
    return [path for path in paths if os.path.realpath(path or ".") != HERE]


def _leave() -> None:
    """Takes out of this Python, and of what it starts, all that `tpo run` put there."""
    sys.path[:] = _others(sys.path)
    rest = _others(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)
    if rest:
        os.environ["PYTHONPATH"] = os.pathsep.join(rest)
    else:
        os.environ.pop("PYTHONPATH", None)
    for name in (SERVED, "TPO_SCRIPT"):
        os.environ.pop(name, None)


def _run_hidden() -> None:
    """Runs the environment's own sitecustomize, which this one hides."""
    spec = PathFinder.find_spec("sitecustomize", _others(sys.path))
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


try:
    from tpo_plugin.script.imports import install

    install()
    os.environ[SERVED] = "1"
except Exception:
    if SERVED in os.environ:  # a tool of a script that can train with TPO
        _leave()
    else:
        sys.meta_path.insert(0, _Refusing(traceback.format_exc()))
_run_hidden()
