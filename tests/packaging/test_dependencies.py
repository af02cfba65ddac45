"""What a distribution imports, it declares: another's requirements may change."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parents[2]
MEMBERS = [ROOT, *sorted(p.parent for p in ROOT.glob("*/*/pyproject.toml"))]
FOR_TESTS = ("test", "dev")
"""Extras for tests, which are there where a distribution's own kit for tests is imported, and nowhere else."""


def imported(source: str) -> Iterator[str]:
    """The top-level packages that are imported anywhere in a file, also inside of functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(project: dict[str, Any], with_tests: bool) -> set[str]:
    """Distributions in the dependencies and in the extras."""
    extras = project.get("optional-dependencies", {}).items()
    optional = [r for name, requirements in extras if with_tests or name not in FOR_TESTS for r in requirements]
    return {normal(re.match(r"[\w.-]+", r)[0]) for r in [*project["dependencies"], *optional]}  # type: ignore[index]


def undeclared(package: Path, project: dict[str, Any]) -> list[str]:
    """`file: import` of everything that comes from a distribution which is not declared."""
    distributions = packages_distributions()
    found = []
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package).with_suffix("").parts
        known = declared(project, with_tests=inside[0] == "testing")
        for name in sorted(set(imported(file.read_text())) - set(sys.stdlib_module_names) - {package.name}):
            if not known & {normal(name), *map(normal, distributions.get(name, ()))}:
                found.append(f"{'/'.join(inside)}: {name}")
    return found


@pytest.mark.parametrize("folder", MEMBERS, ids=lambda folder: folder.name if folder != ROOT else "core")
def test_every_import_is_declared(folder: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    packages = [ROOT / "tpo_plugin"] if folder == ROOT else [p for p in (folder / "src").iterdir() if p.suffix == ""]
    assert packages
    for package in packages:
        assert not undeclared(package, project)


def test_these_would_be_found(tmp_path: Path) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "a.py").write_text(
        "import os, yaml\nfrom . import b\ndef f():\n    from mine.b import c\n    import PIL.Image"
    )
    (package / "testing.py").write_text("import pytest")
    (package / "b.py").write_text("import pytest")
    project = {"dependencies": ["PyYAML>=6"], "optional-dependencies": {"test": ["pytest"]}}
    assert undeclared(package, project) == ["a: PIL", "b: pytest"]
