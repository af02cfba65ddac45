"""The package that `tpo new-head` writes; tests/integration/test_third_party.py shows that it passes the kit."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tpo_plugin import TPOError
from tpo_plugin.scaffold import new_head


@pytest.mark.parametrize(
    ("name", "distribution", "package", "class_name"),
    [("count", "tpo-head-count", "tpo_head_count", "CountHead"), ("a_b2", "tpo-head-a-b2", "tpo_head_a_b2", "AB2Head")],
)
def test_the_package(tmp_path, name, distribution, package, class_name):
    folder = new_head(name, tmp_path)
    assert folder == tmp_path / distribution
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    sources = {f"src/{package}/{module}.py" for module in ("__init__", "config", "head")}
    assert files == {"pyproject.toml", "README.md", "tests/test_head.py"} | sources
    text = (folder / "pyproject.toml").read_text()
    assert f'[project.entry-points.tpo_plugin]\n{name} = "{package}"\n' in text
    assert f'name = "{distribution}"' in text
    assert f"class {class_name}(tpo.TaskHead):" in (folder / f"src/{package}/head.py").read_text()
    for file in folder.rglob("*"):
        if file.is_file():
            assert "$" not in file.read_text(), f"{file} holds a placeholder"
        if file.suffix == ".py":
            ast.parse(file.read_text())


@pytest.mark.parametrize("name", ["", "Count", "my-head", "2d", "a b", "../up", "x_", "é"])
def test_names_that_no_head_can_have(tmp_path, name):
    with pytest.raises(TPOError, match="expected a lower-case identifier such as 'point'"):
        new_head(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mllm", "assign", "class", "scale", "items", "train", "time"])
def test_names_that_are_taken(tmp_path, name):
    with pytest.raises(TPOError, match=f"head name '{name}': expected a lower-case identifier other than"):
        new_head(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    folder = new_head("count", tmp_path)
    (folder / "README.md").write_text("mine")
    with pytest.raises(TPOError, match="is there already"):
        new_head("count", tmp_path)
    assert (folder / "README.md").read_text() == "mine"


def test_needs_no_torch():
    code = "import sys, tpo_plugin.scaffold; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
