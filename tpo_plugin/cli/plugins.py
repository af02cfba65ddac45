"""Commands that plugins bring by the hook `register_commands`."""

from __future__ import annotations

import functools
import logging
import traceback

import click
import typer

from tpo_plugin.plugins import Plugin, registry

logger = logging.getLogger(__name__)


@functools.cache
def plugin_commands() -> dict[str, click.Command]:
    """The commands of all plugins by name; a plugin whose commands cannot be built is reported once and left out."""
    found: dict[str, click.Command] = {}
    owners: dict[str, Plugin] = {}
    for plugin in registry().plugins:
        if plugin.error is not None:
            continue
        try:
            commands = _commands_of(plugin)
        except (Exception, SystemExit):
            logger.warning("no commands from plugin %r (%s):\n%s", plugin.name, plugin, traceback.format_exc())
            continue
        for name, command in commands.items():
            if name in found:
                logger.warning("command %r of %s is left out: %s has one of that name", name, plugin, owners[name])
                continue
            found[name], owners[name] = command, plugin
    return found


def _commands_of(plugin: Plugin) -> dict[str, click.Command]:
    app = typer.Typer(pretty_exceptions_enable=False)
    registry().call(plugin, "register_commands", app=app)
    return dict(typer.main.get_group(app).commands)
