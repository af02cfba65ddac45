"""Who imports what: the core knows no plugin, and a plugin uses only the core's public names."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tpo_plugin
import tpo_plugin.checks
import tpo_plugin.convert
import tpo_plugin.scores
import tpo_plugin.testing

ROOT = Path(__file__).parents[2]
PLUGINS = sorted([*ROOT.glob("heads/*/src"), *ROOT.glob("patches/*/src"), *ROOT.glob("examples/third_party_head/src")])


def imports(source: str) -> Iterator[tuple[str, str | None]]:
    """(module, name) of each import: name is None for `import module`; attributes of `tpo_plugin` count as imports."""
    tree = ast.parse(source)
    aliases = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
                if alias.name == "tpo_plugin":
                    aliases.add(alias.asname or alias.name)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield node.module or "", alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield "tpo_plugin", node.attr


def core_violations(source: str) -> list[str]:
    return [module for module, _ in imports(source) if module.startswith(("tpo_head_", "tpo_patch_", "tpo_shapes"))]


def plugin_violations(source: str, own: str) -> list[str]:
    wrong = []
    for module, name in imports(source):
        package = module.partition(".")[0]
        if package == "tpo_plugin":
            kit = [public for public in dir(tpo_plugin.testing) if not public.startswith("_")]
            checks = [name for name in vars(tpo_plugin.checks) if name.startswith(("is_", "check_"))]
            public = {
                "tpo_plugin": [*tpo_plugin.__all__, "testing", "checks"],
                "tpo_plugin.testing": kit,
                "tpo_plugin.checks": checks,
                "tpo_plugin.convert": tpo_plugin.convert.__all__,
                "tpo_plugin.atomic": ["replace_file"],
                "tpo_plugin.files": ["replace_file"],  # where it was
                "tpo_plugin.data.confine": ["check_video"],
                "tpo_plugin.errors": ["shown"],
                "tpo_plugin.json_file": ["parse_json", "read_json"],
                "tpo_plugin.yaml_file": ["read_yaml"],
                "tpo_plugin.scores": tpo_plugin.scores.__all__,
            }
            if module not in public or (name is not None and name not in public[module]):
                wrong.append(f"{module}.{name}")
        elif package.startswith(("tpo_head_", "tpo_patch_", "tpo_shapes")) and package != own:
            wrong.append(module)
    return wrong


def test_the_core_knows_no_plugin() -> None:
    for file in (ROOT / "tpo_plugin").rglob("*.py"):
        assert not core_violations(file.read_text()), file


@pytest.mark.parametrize("source", PLUGINS, ids=lambda source: source.parent.name)
def test_a_plugin_uses_public_names_only(source: Path) -> None:
    files = list(source.rglob("*.py"))
    assert files
    for file in files:
        assert not plugin_violations(file.read_text(), file.relative_to(source).parts[0]), file


@pytest.mark.parametrize(
    "line",
    [
        "from tpo_plugin.model import TaskPreferenceModel",
        "from tpo_plugin import _LAZY",
        "from tpo_plugin.files import save_tpo",
        "from tpo_plugin.checks import math",
        "import tpo_plugin.apply",
        "import tpo_plugin as tpo\ntpo.no_such_name",
        "from tpo_head_other import Head",
    ],
)
def test_these_would_be_found(line: str) -> None:
    assert plugin_violations(line, "tpo_head_mine")
    assert not plugin_violations("import tpo_plugin as tpo\ntpo.TaskHead", "tpo_head_mine")
    assert core_violations("import tpo_head_region.head")


def test_folders_of_the_repository_are_not_importable(tmp_path: Path) -> None:
    code = "import importlib.util as u, sys; sys.exit(any(u.find_spec(n) for n in sys.argv[1:]))"
    names = ["heads", "patches", "examples", "tests"]
    assert subprocess.run([sys.executable, "-c", code, *names], cwd=tmp_path).returncode == 0
    assert subprocess.run([sys.executable, "-c", code, "tpo_plugin"], cwd=tmp_path).returncode == 1
    assert importlib.util.find_spec("tpo_plugin") is not None
