"""Distributions as they would be published: built without the workspace, with exactly their own package inside."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
MEMBERS = [ROOT, *sorted(p.parent for p in ROOT.glob("*/*/pyproject.toml"))]


@pytest.mark.slow
@pytest.mark.parametrize("folder", MEMBERS, ids=lambda folder: folder.name if folder != ROOT else "core")
def test_a_wheel_holds_its_package_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(folder)]
    done = subprocess.run(build, capture_output=True, text=True)  # an sdist, and the wheel from it
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    sources = folder if folder == ROOT else folder / "src"
    (package,) = packages
    expected = {
        str(file.relative_to(sources))
        for file in (sources / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert set(names) >= expected, sorted(expected - set(names))
    assert {name for name in names if name.startswith(f"{package}/")} == expected
    assert f"{package}/py.typed" in names
    assert package == "tpo_plugin" if folder == ROOT else package.startswith(("tpo_", "acme_"))
