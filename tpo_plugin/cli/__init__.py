"""The command line `tpo`. Heavy packages are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from tpo_plugin.cli import (
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
app.command("serve")(serve.serve)
app.command("retention")(retention.retention)
app.command("doctor")(doctor.doctor)
app.command("export")(export.export)
app.command("push")(push.push)


def main() -> None:
    """Runs `tpo`; wrong use ends with one message and exit status 1, not with a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    warnings.simplefilter("ignore", FutureWarning)  # what libraries have to say to each other
    try:
        app()
    except TPOError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:  # not about a file that the user named
            raise
        typer.echo(f"Error: {error.filename}: {error.strerror}; expected a file or folder that can be used", err=True)
        sys.exit(1)
