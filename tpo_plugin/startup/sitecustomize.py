"""Imported by Python at its start where `tpo run` put this folder first on PYTHONPATH."""

import sys
import traceback
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent


def _run_hidden() -> None:
    """Runs the environment's own sitecustomize, which this one hides."""
    spec = PathFinder.find_spec("sitecustomize", [path for path in sys.path if Path(path or ".").resolve() != HERE])
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


try:
    from tpo_plugin.autorun import install

    install()
except BaseException:
    # Python goes on after an error in here, and the script would train without TPO.
    traceback.print_exc()
    sys.stderr.write(f"tpo run: this Python ({sys.executable}) cannot use tpo-plugin; is it installed there?\n")
    raise SystemExit(1) from None
_run_hidden()
