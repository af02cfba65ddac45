"""`tpo app` as a process; its page in a browser is tests/app."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio, whose pages the browser shows")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("asked", [False, True], ids=["stopped at once", "stopped once it was asked"])
def test_the_command_listens_here_alone_and_leaves_nothing(world: Path, tmp_path: Path, asked: bool) -> None:
    code = "from tpo_plugin.cli import main; main()"
    command = [sys.executable, "-c", code, "app", str(world / "run"), "--port", "0"]
    names = {"TMPDIR": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | names) as process:
        try:
            assert process.stdout is not None
            address = re.fullmatch(r"run is at (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
            assert address
            if asked:
                with urllib.request.urlopen(f"{address[1]}/") as answer:
                    assert b"gradio" in answer.read()
                assert list(tmp_path.glob("tpo-app-*"))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert not list(tmp_path.glob("tpo-app-*"))
