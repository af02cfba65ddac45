"""Versions that the distributions declare, and the pins that CI installs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import tpo_plugin
from tpo_plugin.extras import EXTRAS
from tpo_plugin.plugins import compatible_range

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
MEMBERS = [ROOT, *sorted(p.parent for p in ROOT.glob("*/*/pyproject.toml"))]


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def pins(file: Path) -> dict[str, str]:
    """Version by name; every line must be a plain `name==version`, if need be with a marker."""
    found = {}
    for line in file.read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9-]+)==([0-9][\w.]*)( ; python_version .*)?", line)
            assert match, f"{file.name}: {line!r}"
            found[match[1]] = match[2]
    return found


def name_of(requirement: str) -> str:
    return re.match(r"[\w-]+", requirement)[0]  # type: ignore[index]


def test_lower_bounds_are_the_versions_that_were_tried() -> None:
    tried = pins(ROOT / "tests/envs/transformers-4.45.txt")
    extras = project(ROOT)["optional-dependencies"]
    used = [requirement for name in ("cli", "train", "video") for requirement in extras[name]]
    for requirement in [*project(ROOT)["dependencies"], *(r for r in used if not r.startswith("tpo-plugin"))]:
        name, bound = re.match(r"([\w-]+)>=([\w.]+)(;|$)", requirement).groups()[:2]  # type: ignore[union-attr]
        assert bound == tried[name], requirement


@pytest.mark.parametrize("folder", MEMBERS, ids=lambda folder: folder.name)
def test_ci_pins_every_direct_dependency(folder: Path) -> None:
    pinned = pins(ROOT / "constraints.txt")
    given = project(folder)
    extras = [r for requirements in given.get("optional-dependencies", {}).values() for r in requirements]
    names = {name_of(requirement) for requirement in [*given.get("dependencies", []), *extras]}
    own = {project(member)["name"] for member in MEMBERS}
    assert names - own <= set(pinned), sorted(names - own - set(pinned))


@pytest.mark.parametrize("folder", MEMBERS[1:], ids=lambda folder: folder.name)
def test_members_go_with_the_core(folder: Path) -> None:
    core, member = project(ROOT), project(folder)
    assert member["requires-python"] == (">=3.11" if folder.name == "shapes" else core["requires-python"])
    (requirement,) = (r for r in map(Requirement, member["dependencies"]) if r.name == core["name"])
    assert str(requirement.specifier) == str(SpecifierSet(compatible_range()))
    own = [r for r in map(Requirement, member["dependencies"]) if r.name.startswith("tpo-")]
    assert {str(r.specifier) for r in own} == {str(requirement.specifier)}
    assert member["license"] == core["license"]


def test_the_extra_of_a_package_brings_it() -> None:
    """What is said where a package is missing installs it."""
    names = {"yaml": "pyyaml", "PIL": "pillow", "prometheus_client": "prometheus-client"}
    extras = project(ROOT)["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert names.get(package, package) in {name_of(requirement) for requirement in extras[extra]}, package
    own = {"test", "dev", "docs", "browser", "all"}
    brought = {name_of(r) for extra, rs in extras.items() if extra not in own for r in rs} - {"tpo-plugin"}
    assert brought == {names.get(package, package) for package in EXTRAS}


def test_a_release_has_every_distribution_of_one_version() -> None:
    """But those that are examples of somebody else's: they stand in for packages that others publish."""
    released = [folder for folder in MEMBERS if folder.name not in ("third_party_head", "lmms_eval")]
    workflow = (ROOT / ".github/workflows/release.yml").read_text()
    (listed,) = re.findall(r"for member in (.*); do", workflow)
    assert sorted(listed.split()) == sorted(str(folder.relative_to(ROOT)) for folder in released)
    versions = {project(folder)["version"] for folder in released if folder != ROOT}
    assert versions == {tpo_plugin.__version__}
    assert f"version: {tpo_plugin.__version__}\n" in (ROOT / "CITATION.cff").read_text()
