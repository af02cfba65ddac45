"""`tpo app` as a process; its page in a browser is tests/app."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio")
pytestmark = pytest.mark.slow


def test_the_command_listens_here_alone_and_leaves_nothing(world: Path, tmp_path: Path) -> None:
    code = "from tpo_plugin.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "app", str(world / "run"), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    said = process.stdout.readline()
    address = re.search(r"run is at http://127\.0\.0\.1:(\d+)$", said)
    assert address, (said, process.communicate()[1])
    assert list(tmp_path.glob("tpo-app-*"))
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert not list(tmp_path.glob("tpo-app-*"))
