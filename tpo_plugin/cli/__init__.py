"""The command line `tpo`. Heavy packages are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import errno
import logging
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tpo_plugin.cli import (
    chat_app,
    check,
    convert,
    doctor,
    eval,
    export,
    heads,
    init,
    new_head,
    predict,
    push,
    retention,
    run,
    serve,
    train,
)
from tpo_plugin.cli.plugins import plugin_commands
from tpo_plugin.errors import TPOError
from tpo_plugin.extras import needed


class _Commands(TyperGroup):
    """The commands of the core, then those of plugins; plugins are loaded only where the core has no such command."""

    def list_commands(self, ctx: Any) -> list[str]:
        own = super().list_commands(ctx)
        return [*own, *sorted(plugin_commands(frozenset(own)))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or plugin_commands(frozenset(self.commands)).get(cmd_name)


app = typer.Typer(
    cls=_Commands,
    help="Task tokens and task heads for multimodal language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("heads")(heads.show_heads)
app.command("new-head")(new_head.new_head)
app.add_typer(convert.app, name="convert")
app.command("check")(check.check)
app.command("init", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(init.init)
app.command("train")(train.train)
app.command("run")(run.run)
app.command("eval")(eval.evaluate)
app.command("predict")(predict.predict)
app.command("app")(chat_app.chat_app)
app.command("serve")(serve.serve)
app.command("retention")(retention.retention)
app.command("doctor")(doctor.doctor)
app.command("export")(export.export)
app.command("push")(push.push)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Where a command fails, print the traceback too.")] = False,
) -> None:
    """`main` reads the option."""


def main() -> None:
    """Runs `tpo`; what goes wrong ends with one message and exit status 1, with `--debug` with its traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    warnings.simplefilter("ignore", FutureWarning)  # what libraries have to say to each other
    try:
        with needed():
            app()
    except Exception as error:
        if sys.argv[1:2] == ["--debug"]:
            raise
        typer.echo(f"Error: {message(error)}", err=True)
        sys.exit(1)


def message(error: Exception) -> str:
    """What went wrong, and what to do about it."""
    if isinstance(error, TPOError):
        return str(error)
    said = (str(error).strip() or "no more is known").splitlines()[0]
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}; make room, or give another folder, and do the same again"
    if isinstance(error, OSError) and error.filename is not None:  # about a file that the user named
        return f"{error.filename}: {error.strerror}; expected a file or folder that can be used"
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return f"the package {error.name.partition('.')[0]!r} is needed for this and not installed: install it with pip"
    if isinstance(error, ImportError):  # of a library, which says what it needs
        return said
    return (
        f"{type(error).__name__}: {said}. That was not foreseen: `tpo --debug` and the rest of the command shows where "
        "it happened, and is what a report of it should have"
    )
