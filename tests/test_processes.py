"""Processes that work for another one end where that is killed."""

import subprocess
import sys

import pytest

WORKING = """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from {module} import {name}
if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), {name}, {arguments}) as pool:
        pool.submit(print, "works", flush=True).result()
        pool.submit(time.sleep, 600).result()
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [("tpo_plugin.processes", "end_with_parent", ()), ("tpo_plugin.data.check", "_start", (None,))],
    ids=["itself", "tpo check"],
)
def test_they_end_with_it(module, name, arguments, tmp_path):
    script = tmp_path / "working.py"
    script.write_text(WORKING.format(module=module, name=name, arguments=arguments))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "works\n"
        process.kill()
        assert process.stdout.read() == "", "which comes to an end when no process holds it any more"
