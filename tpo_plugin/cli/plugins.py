"""Commands that plugins bring by the hook `register_commands`."""

from __future__ import annotations

import functools
import logging
import traceback
from typing import Any

import typer

from tpo_plugin.plugins import Plugin, registry

logger = logging.getLogger(__name__)


@functools.cache
def plugin_commands(taken: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The commands of all plugins by name, those with `taken` names left out.

    A plugin whose commands cannot be built is reported once and left out.
    """
    found: dict[str, Any] = {}
    for plugin in registry().plugins:
        if plugin.error is not None:
            continue
        try:
            commands = _commands_of(plugin)
        except (Exception, SystemExit):
            logger.warning("no commands from plugin %r (%s):\n%s", plugin.name, plugin, traceback.format_exc())
            continue
        for name, command in commands.items():
            if name in found or name in taken:
                logger.warning("command %r of plugin %r (%s) is left out: the name is taken", name, plugin.name, plugin)
            else:
                found[name] = command
    return found


def _commands_of(plugin: Plugin) -> dict[str, Any]:
    app = typer.Typer(pretty_exceptions_enable=False)
    registry().call(plugin, "register_commands", app=app)
    return dict(typer.main.get_group(app).commands)
