"""`tpo convert`: a plugin's format is a command of its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin import TPOError, hookimpl, register_plugin, unregister_plugin
from tpo_plugin.convert import Entry, Format, Report, formats


@dataclass(kw_only=True)
class Greetings(Format):
    """Greetings, one a line."""

    source: Annotated[Path, typer.Argument(help="The lines.")]
    tone: Annotated[Literal["warm", "cool"], typer.Option(help="How.")] = "warm"
    times: Annotated[int, typer.Option(min=1, help="How often.")] = 1

    def __post_init__(self) -> None:
        if self.tone == "cool" and self.times > 1:
            raise TPOError("--tone cool goes with --times 1")

    def entries(self, report: Report) -> Iterator[Entry]:
        for number, line in enumerate(self.source.read_text().splitlines()):
            yield Entry(f"{self.tone}:{number}", [line, line * self.times])


@pytest.fixture
def greetings() -> Iterator[None]:
    def plugin(*names: str) -> ModuleType:
        module = ModuleType("made_here")

        def add(register: Any) -> None:
            for name in names:
                register(name, Greetings)

        module.register_formats = hookimpl(specname="register_formats")(add)  # type: ignore[attr-defined]
        return module

    register_plugin(plugin("greetings"), "greeter")
    register_plugin(plugin("greetings", "greetings-2"), "second")
    register_plugin(plugin("No such name"), "wrong")
    formats.cache_clear()
    yield
    for name in ("greeter", "second", "wrong"):
        unregister_plugin(name)
    formats.cache_clear()


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(tpo_plugin.cli.app, ["convert", *arguments])
    return result.exit_code, str(result.exception) if isinstance(result.exception, TPOError) else result.output


def test_a_plugin_s_format_is_a_command(greetings: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in.txt").write_text("Hi\nHo\n")
    source, out = str(tmp_path / "in.txt"), str(tmp_path / "out.jsonl")
    with caplog.at_level(logging.WARNING):
        code, said = run("greetings", source, "--times", "2", "-o", out)
    assert (code, said.strip()) == (0, f"{out}: 2 records written, 0 left out")
    records = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert [record["conversations"][1]["value"] for record in records] == ["HiHi", "HoHo"]
    assert "format 'greetings' of plugin 'second' (this process) is left out: the name is taken" in caplog.text
    assert "no formats from plugin 'wrong' (this process)" in caplog.text
    assert "  greetings           Greetings, one a line." in run("--list")[1]
    assert run("greetings", source, "--tone", "cool", "--times", "2", "-o", out)[1] == "--tone cool goes with --times 1"
    assert run("greetings", source, "--tone", "odd", "-o", out)[0] == 2
    assert run("greetings-3", source)[1].startswith("no format 'greetings-3' is installed; did you mean 'greetings-2'?")
