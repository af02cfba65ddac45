"""`tpo heads`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin.plugins import BLOCK_VARIABLE, Registry, registry


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry with a head, a second claim of it, a patch, a plugin that fails, and one that is blocked."""
    hooks = "import tpo_plugin\n@tpo_plugin.hookimpl\n"
    head = hooks + "def register_heads(register): register('seg', head='a:B', trigger='<s1>', task_token='<s2>')\n"
    patch = hooks + "def register_patches(register): register('code', host='a:B', matches=lambda model: False)\n"
    plugins = {"seg_a": head, "seg_b": head, "codebase": patch, "broken": "import not_there_at_all\n", "off": "1/0\n"}
    for name, code in plugins.items():
        (tmp_path / f"{name}_listed.py").write_text(code)
    info = tmp_path / "acme-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 2.0\n")
    lines = [f"{name} = {name}_listed" for name in plugins]
    (info / "entry_points.txt").write_text("\n".join(["[tpo_plugin]", *lines, ""]))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(BLOCK_VARIABLE, "off")
    found = registry.__wrapped__()
    monkeypatch.setattr("tpo_plugin.cli.heads.registry", lambda: found)
    return found


def run(*arguments: str) -> str:
    result = CliRunner().invoke(tpo_plugin.cli.app, ["heads", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_json_lists_everything(found: Registry) -> None:
    listed = json.loads(run("--json"))
    segs = [head for head in listed["heads"] if head["name"] == "seg"]
    assert [(head["plugin"], head["clash"]) for head in segs] == [("seg_a", True), ("seg_b", True)]
    assert segs[0] == {
        "name": "seg",
        "trigger": "<s1>",
        "task_token": "<s2>",
        "input_token": None,
        "plugin": "seg_a",
        "distribution": "acme",
        "version": "2.0",
        "clash": True,
    }
    expected = {"name": "code", "plugin": "codebase", "distribution": "acme", "version": "2.0"}
    assert expected in listed["patches"]
    errors = {plugin["name"]: plugin["error"] for plugin in listed["plugins"]}
    assert errors["seg_a"] is None
    assert "No module named 'not_there_at_all'" in errors["broken"]
    assert errors["off"] == "blocked by TPO_BLOCK_PLUGINS"


def test_the_table_says_what_failed_and_why(found: Registry) -> None:
    lines = run().splitlines()
    assert ["seg", "<s1>", "<s2>", "-", "acme", "2.0", "(CLASH)"] in [line.split() for line in lines]
    assert "patch code: acme 2.0" in lines
    assert "not in use: broken (acme 2.0)" in lines
    assert "ModuleNotFoundError: No module named 'not_there_at_all'" in lines
    assert lines[lines.index("not in use: off (acme 2.0)") + 1] == "blocked by TPO_BLOCK_PLUGINS"


def test_without_any_head(found: Registry) -> None:
    found.claims.clear()
    assert "No head is installed. For example: pip install tpo-head-region" in run()


def test_as_a_module() -> None:
    as_module = subprocess.run([sys.executable, "-m", "tpo_plugin"], capture_output=True, text=True)
    assert as_module.returncode == 0, as_module.stderr
    assert as_module.stdout.split() == run().split()
