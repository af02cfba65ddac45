"""Every page of the site: what is made is made anew, names and keys are all there, links lead somewhere, and every
command and block of code is read by what would run it. What a page promises in full is run by the tests of that page.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import posixpath
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
import yaml
from annotated_types import Ge

pytest.importorskip("tomllib")
pytest.importorskip("tpo_head_mask", reason="the pages' tables are made with all heads of the repository")

import tpo_plugin
import tpo_plugin.cli
from tests import pages
from tpo_plugin.keys import keys_of
from tpo_plugin.plugins import registry
from tpo_plugin.training.config import TrainConfig

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not {".venv", "build", "templates", "node_modules"} & set(path.parts) and path.name != "CHANGELOG.md"
]
EACH = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:(?<=\n\n)|(?<=-->\n))((?:    .*\n|\n(?=    ))+)")


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of these languages."""
    return [text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


# -- what is made ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_parts_are_what_is_declared(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == pages.made(text), "run python -m tests.pages"


def test_every_part_stands_on_a_page() -> None:
    used = {name for page in pages.PAGES for name in re.findall(r"<!-- made: (\w+) -->", page.read_text())}
    assert used == {*pages.PARTS, "end"}


def configurations(config: type) -> Iterator[type]:
    """A dataclass and those below it."""
    yield config
    for key in keys_of(config):
        if key.below is not None:
            yield from configurations(key.below)


def undescribed(config: type) -> list[str]:
    return [f"{each.__name__}.{key.name}" for each in configurations(config) for key in keys_of(each) if not key.about]


def test_every_key_says_what_it_means() -> None:
    for config in (TrainConfig, *(spec.config_class() for spec in registry().heads.values())):
        assert not undescribed(config), "give it a docstring under its field"


@dataclasses.dataclass(kw_only=True)
class _Inner:
    said: int = 1
    """What it is; None is nothing."""
    unsaid: Annotated[int, Ge(1)] = 2


@dataclasses.dataclass(kw_only=True)
class _Outer:
    inner: list[_Inner] = dataclasses.field(default_factory=list)
    """Some."""


def test_a_key_without_a_docstring_would_be_found() -> None:
    assert undescribed(_Outer) == ["_Inner.unsaid"]
    assert [key.about for key in keys_of(_Inner)] == ["What it is; null is nothing.", ""]
    assert keys_of(_Inner)[1].admits == "a whole number of at least 1"


def test_every_public_name_has_its_place_in_the_reference() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    shown = re.findall(r"^::: (\S+)", text, re.MULTILINE)
    assert len(set(shown)) == len(shown)
    missing = []
    for module in ("tpo_plugin", "tpo_plugin.data", "tpo_plugin.convert", "tpo_plugin.scores", "tpo_plugin.testing"):
        names = importlib.import_module(module).__all__
        # Names of the core that are also those of tpo_plugin.data stand there.
        missing += [n for n in names if not {f"{module}.{n}", f"tpo_plugin.data.{n}"} & set(shown)]
    assert not missing
    for name in shown:
        module, _, attribute = name.rpartition(".")
        assert name == "tpo_plugin.hookspecs" or hasattr(importlib.import_module(module), attribute), name


# -- what is written by hand -------------------------------------------------------------------------------------------


@EACH
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        target, _, anchor = link.partition("#")
        if ":" in target:
            continue
        path = page.parent / target if target else page
        assert path.exists(), link
        path = path / "README.md" if path.is_dir() and anchor else path
        if anchor and path.suffix == ".md" and not anchor.startswith("tpo_plugin"):  # of which mkdocs looks
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}, (
                link
            )


def lines_of_commands(page: Path) -> Iterator[str]:
    """Lines of `tpo` in blocks, indented ones and fences, each from its `tpo` on."""
    plain = BLOCK.sub(
        "\n", pages.PART.sub("", page.read_text(encoding="utf-8"))
    )  # the parts that are made are the parsers'
    for part in [*INDENTED.findall(plain), *blocks(page, "bash", "text", "shell")]:
        for line in part.replace("\\\n", " ").splitlines():
            if match := re.match(r"\s*(?:[A-Z_]+=\S* |torchrun .*--no-python |for .*; do )*(tpo [a-z].*)$", line):
                yield match[1]


def check_command(line: str) -> None:
    """Reads a line as `tpo` would, and starts nothing. Raises what click raises."""
    line = re.sub(r"\[[^]]*\]", "", line)  # what may be left out
    _, *arguments = shlex.split(line, comments=True)
    command: Any = typer.main.get_command(tpo_plugin.cli.app)
    while hasattr(command, "get_command") and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        if name.isupper():  # FORMAT stands for any
            return
        command = command.get_command(None, name)
        assert command is not None, f"tpo has no command {name!r}"
    command.make_context("tpo", arguments, resilient_parsing=line.endswith("--list"))


@EACH
def test_commands_are_those_that_there_are(page: Path) -> None:
    for line in lines_of_commands(page):
        try:
            check_command(line)
        except Exception as error:
            raise AssertionError(f"{line}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("line", ["tpo tarin a", "tpo train --resum a.yaml", "tpo convert coco", "tpo import cg a"])
def test_a_wrong_command_would_be_found(line: str) -> None:
    with pytest.raises(Exception, match=r"."):
        check_command(line)
    check_command("tpo train --no-resume a.yaml")


@EACH
def test_python_is_python_and_its_names_are_there(page: Path) -> None:
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                ("tpo_plugin", "tpo_shapes", "tpo_head")
            ):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@EACH
def test_training_files_are_read(page: Path) -> None:
    for text in blocks(page, "yaml"):
        values = yaml.safe_load(text)
        if set(values) == {"tpo"}:
            values = {"model": "host", "output_dir": "run", **values}
        if "output_dir" in values and "model" in values:
            TrainConfig.from_dict(values, where=page.name).check_heads(where=page.name)


def test_all_pages_are_of_the_site() -> None:
    nav = (ROOT / "mkdocs.yml").read_text()
    command = ["git", "ls-files", "-co", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        site = "index.md" if name == "README.md" else posixpath.normpath(name).removeprefix("docs/")
        assert f": {site}\n" in nav, f"{name} stands nowhere in mkdocs.yml"


def test_records_are_records() -> None:
    (text,) = blocks(ROOT / "docs/train.md", "json")
    record = json.loads(text)
    format = tpo_plugin.data.RecordFormat.of_heads(["region"])
    assert len(tpo_plugin.data.parse_record(record, format).turns) == 2
