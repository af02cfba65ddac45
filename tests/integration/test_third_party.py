"""Heads from outside the repository, installed by pip beside the core's built wheel, in an environment of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.packaging, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]


def call(*command: str | Path, cwd: Path) -> str:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "TPO_"))}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(source: Path, target: Path) -> Path:
    """Builds a copy of the source, so that the checkout stays as it is and no old build folder gets in."""
    ignore = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    copy = shutil.copytree(source, target / "source", ignore=ignore)  # makes target too
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, copy, cwd=target)
    (wheel,) = target.glob("*.whl")
    return wheel


@dataclass
class Environment:
    """A virtual environment with the core's wheel."""

    python: Path
    site_packages: Path
    core_wheel: Path

    def install(self, wheel: Path, cwd: Path) -> None:
        call(self.python, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", wheel, cwd=cwd)

    def pytest(self, tests: Path, cwd: Path, *options: str) -> str:
        return call(self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, tests, cwd=cwd)


def borrow(packages: Iterable[Path], site_packages: Path) -> None:
    """Links what is installed here, torch above all, except this project's own distributions."""
    present = {path.name for path in site_packages.iterdir()}
    for folder in packages:
        for path in folder.iterdir():
            own = path.name.startswith(("tpo", "acme", "__editable__", "_virtualenv")) or path.suffix == ".pth"
            if path.name not in present and not own and path.name != "__pycache__":
                (site_packages / path.name).symlink_to(path)
                present.add(path.name)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    site_packages = Path(
        call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    here = dict.fromkeys(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib"))
    borrow(here, site_packages)
    made = Environment(python, site_packages, build_wheel(ROOT, folder))
    made.install(made.core_wheel, cwd=folder)
    return made


def heads_of(environment: Environment, cwd: Path) -> dict[str, str]:
    """Distribution by head, as a process in another directory sees it; and no plugin of it may have failed."""
    code = (
        "import json; from tpo_plugin import registry; found = registry(); "
        "assert not [p.error for p in found.plugins if p.error]; "
        "print(json.dumps({name: str(spec.plugin) for name, spec in found.heads.items()}))"
    )
    return json.loads(call(environment.python, "-c", code, cwd=cwd))


def test_third_party_head_needs_no_edit_of_the_core(environment, tmp_path):
    source = shutil.copytree(ROOT / "examples" / "third_party_head", tmp_path / "acme")
    assert "point" not in heads_of(environment, tmp_path)
    environment.install(build_wheel(source, tmp_path / "wheel"), cwd=tmp_path)
    assert heads_of(environment, tmp_path)["point"] == "acme-tpo-point 1.0.0"

    shutil.rmtree(source / "src")  # what runs is what was installed
    (tmp_path / "elsewhere").mkdir()
    report = environment.pytest(source / "tests", tmp_path / "elsewhere", "--strict-markers", "-W", "error")
    assert " passed" in report
    assert " skipped" not in report
    assert " xfailed" not in report

    with zipfile.ZipFile(environment.core_wheel) as wheel:  # built before the head came
        files = [name for name in wheel.namelist() if name.startswith("tpo_plugin/")]
        assert len(files) > 20
        for name in files:
            assert (environment.site_packages / name).read_bytes() == wheel.read(name), f"{name} was edited"
    for name in ("heads", "patches", "tests", "examples"):
        code = f"import importlib.util as u; assert u.find_spec({name!r}) is None, {name!r}"
        call(environment.python, "-c", code, cwd=tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["count", "two_words"])
def test_new_head_passes_the_kit_at_once(environment, tmp_path, name):
    code = f"from tpo_plugin.scaffold import new_head; print(new_head({name!r}, '.'))"
    folder = tmp_path / call(environment.python, "-c", code, cwd=tmp_path).strip()
    environment.install(build_wheel(folder, tmp_path / "wheel"), cwd=tmp_path)
    assert heads_of(environment, tmp_path)[name] == f"{folder.name} 0.1.0"
    report = environment.pytest(folder / "tests", tmp_path, "--strict-markers", "-W", "error")
    assert " passed" in report
    assert " skipped" not in report
    assert " xfailed" not in report
