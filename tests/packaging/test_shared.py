"""The variables of conftest.py that turn skips for want of golden data, or of a browser, into failures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[2] / "conftest.py"
TESTS = """
import pytest

def test_by_fixture(shared): ...

@pytest.mark.skip(reason="needs shared/golden")
def test_by_mark(): ...

@pytest.mark.skip(reason="needs a browser")
def test_in_a_browser(): ...

@pytest.mark.skip(reason="needs a GPU")
def test_for_another_reason(): ...
"""
MODULE = "import pytest\npytest.skip('needs shared/media', allow_module_level=True)\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "required", "failed"),
    [("TPO_REQUIRE_SHARED", "", 0), ("TPO_REQUIRE_SHARED", "1", 3), ("TPO_REQUIRE_BROWSER", "1", 1)],
)
def test_a_skip_for_want_of_what_is_required_fails(variable: str, required: str, failed: int, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    shutil.copy(CONFTEST, repository)
    (repository / "test_some.py").write_text(TESTS)
    (repository / "test_module.py").write_text(MODULE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    environment = {**os.environ, "TPO_REQUIRE_SHARED": "", "TPO_REQUIRE_BROWSER": "", variable: required}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == (1 if failed else 0), done.stdout
    summary = done.stdout.splitlines()[-1]
    assert f"{5 - failed} skipped" in summary
    assert ("error" in summary) == bool(failed), done.stdout
