"""`tpo heads`: what is installed, from where, and what failed."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tpo_plugin.listing import as_text, describe
from tpo_plugin.plugins import registry


def show_heads(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with full tracebacks.")] = False,
) -> None:
    """List the installed heads: tokens, the distribution they come from, and what failed and why."""
    found = registry()
    typer.echo(json.dumps(describe(found), indent=2) if as_json else as_text(found))
