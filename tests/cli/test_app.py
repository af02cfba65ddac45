"""The command line itself: light to start, commands of plugins, errors as one message."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin import TPOError, hookimpl, register_plugin, registry, unregister_plugin
from tpo_plugin.cli.plugins import plugin_commands
from tpo_plugin.extras import MissingPackage

COMMANDS = ["heads", "new-head", "convert", "check", "train", "predict", "doctor", "run", "app", "serve", "retention"]
HEAVY = ("torch", "transformers", "peft", "numpy", "av", "PIL")
HELP = f"""
import sys
from tpo_plugin.cli import main
for command in sys.argv[1:]:
    sys.argv = ["tpo", *command.split(), "--help"]
    try:
        main()
    except SystemExit as end:
        print(command, end.code, [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def test_help_imports_nothing_heavy() -> None:
    """Of all commands, one after the other."""
    done = subprocess.run([sys.executable, "-c", HELP, "", *COMMANDS], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [f"{command} 0 []" for command in ["", *COMMANDS]]
    assert done.stdout.count("Usage: tpo") == 1 + len(COMMANDS)


def test_the_lightness_test_can_fail() -> None:
    done = subprocess.run([sys.executable, "-c", "import numpy\n" + HELP, ""], capture_output=True, text=True)
    assert done.stderr.strip() == "0 ['numpy']"


@pytest.fixture
def plugin() -> Iterator[Callable[..., None]]:
    """Registers a plugin with commands for one test."""
    names: list[str] = []

    def add(name: str, hook: Callable[[typer.Typer], None]) -> None:
        module = ModuleType("made_here")
        module.register_commands = hookimpl(specname="register_commands")(lambda app: hook(app))  # type: ignore[attr-defined]
        register_plugin(module, name)
        names.append(name)
        plugin_commands.cache_clear()

    yield add
    for name in names:
        unregister_plugin(name)
    plugin_commands.cache_clear()


def hello(app: typer.Typer) -> None:
    @app.command("hello")
    def say(name: str) -> None:
        """Greet."""
        typer.echo(f"hello {name}")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(tpo_plugin.cli.app, arguments)
    return result.exit_code, result.output


def test_a_plugin_brings_a_command(plugin: Callable[..., None]) -> None:
    plugin("greeter", hello)
    assert run("hello", "you") == (0, "hello you\n")
    code, listing = run("--help")
    assert code == 0
    assert all(name in listing for name in [*COMMANDS, "hello"])


def test_a_failing_plugin_breaks_no_command(plugin: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    def raises(app: typer.Typer) -> None:
        hello(app)
        raise RuntimeError("no commands today")

    def cannot_be_built(app: typer.Typer) -> None:
        @app.command("odd")
        def odd(value: NoSuchType) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    plugin("raises", raises)
    plugin("unbuildable", cannot_be_built)
    plugin("greeter", hello)
    with caplog.at_level(logging.WARNING):
        assert run("hello", "you") == (0, "hello you\n")
    assert "no commands from plugin 'raises' (this process)" in caplog.text
    assert "no commands today" in caplog.text
    assert "no commands from plugin 'unbuildable' (this process)" in caplog.text
    assert run("--help")[0] == 0


def test_a_command_name_that_is_taken_is_left_out_aloud(
    plugin: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    def takes_heads(app: typer.Typer) -> None:
        @app.command("heads")
        def mine() -> None:
            typer.echo("mine")

    plugin("greeter", hello)
    plugin("second", hello)
    plugin("thief", takes_heads)
    with caplog.at_level(logging.WARNING):
        assert "mine" not in run("heads")[1]
        assert run("hello", "you")[0] == 0
        run("--help")
    assert "command 'hello' of plugin 'second' (this process) is left out" in caplog.text
    assert "command 'heads' of plugin 'thief' (this process) is left out" in caplog.text


def test_core_commands_do_not_ask_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpo_plugin.cli, "plugin_commands", lambda taken: pytest.fail("plugins were asked"))
    assert run("train", "--help")[0] == 0


def test_an_unknown_command_is_a_usage_error() -> None:
    code, output = run("trian")
    assert code == 2
    assert "No such command 'trian'" in output


def test_wrong_use_is_one_message_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["tpo", "predict", "run", "--prompt", "a", "--image", "b", "--video", "c"])
    with pytest.raises(SystemExit) as end:
        tpo_plugin.cli.main()
    assert end.value.code == 1
    assert capsys.readouterr().err == "Error: both --image and --video were given; expected one of them\n"


ERRORS: dict[str, tuple[Callable[[], BaseException], str]] = {
    "a full disk": (
        lambda: OSError(errno.ENOSPC, "No space left on device"),
        "No space left on device; make room, or give another folder, and do the same again",
    ),
    "a file": (
        lambda: PermissionError(errno.EACCES, "Permission denied", "a.json"),
        "a.json: Permission denied; expected a file or folder that can be used",
    ),
    "a package": (
        lambda: ModuleNotFoundError("No module named 'lmdb.tool'", name="lmdb.tool"),
        "the package 'lmdb' is needed for this and not installed: install it with pip",
    ),
    "an extra's package": (
        lambda: ModuleNotFoundError("No module named 'pyarrow.fs'", name="pyarrow.fs"),
        "the package pyarrow is not installed; pip install 'tpo-plugin[parquet]'",
    ),
    "a library's package": (
        lambda: ImportError("You need `bitsandbytes`: `pip install bitsandbytes`\nand more"),
        "You need `bitsandbytes`: `pip install bitsandbytes`",
    ),
    "a fault of ours": (
        lambda: KeyError("step"),
        "KeyError: 'step'. That was not foreseen: `tpo --debug` and the rest of the command shows where it happened",
    ),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_what_goes_wrong_is_a_sentence_and_with_debug_a_traceback(
    kind: str, plugin: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, said = ERRORS[kind]

    def fails(app: typer.Typer) -> None:
        @app.command("fails")
        def fail() -> None:
            raise make()

    plugin("failing", fails)
    monkeypatch.setattr(sys, "argv", ["tpo", "fails"])
    with pytest.raises(SystemExit) as end:
        tpo_plugin.cli.main()
    assert end.value.code == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"Error: {said}")
    assert printed.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["tpo", "--debug", "fails"])
    with pytest.raises((type(make()), MissingPackage)):
        tpo_plugin.cli.main()


def test_registry_is_shared_with_the_library() -> None:
    assert registry() is tpo_plugin.plugins.registry()
    with pytest.raises(TPOError):
        registry().head("no_such_head")
