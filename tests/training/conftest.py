"""Makes `tiny_run` importable: test files are imported by their path."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("tiny_run", Path(__file__).with_name("tiny_run.py"))
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules["tiny_run"] = _module
_spec.loader.exec_module(_module)
