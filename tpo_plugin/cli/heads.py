"""`tpo heads`: what is installed, from where, and what failed."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from tpo_plugin.plugins import Registry, registry


def show_heads(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with full tracebacks.")] = False,
) -> None:
    """List the installed heads: tokens, the distribution they come from, and what failed and why."""
    found = registry()
    if as_json:
        typer.echo(json.dumps(describe(found), indent=2))
    else:
        _print(found)


def describe(found: Registry) -> dict[str, Any]:
    """The registry as plain values: heads (every claim of a name), patches, and plugins with their errors."""

    def origin(spec: Any) -> dict[str, Any]:
        return {"plugin": spec.plugin.name, "distribution": spec.plugin.distribution, "version": spec.plugin.version}

    heads = [
        {
            "name": spec.name,
            "trigger": spec.trigger,
            "task_token": spec.task_token,
            "input_token": spec.input_token,
            **origin(spec),
            "clash": len(claims) > 1,
        }
        for _, claims in sorted(found.claims.items())
        for spec in claims
    ]
    patches = [{"name": spec.name, **origin(spec)} for _, spec in sorted(found.patches.items())]
    plugins = [
        {"name": p.name, "distribution": p.distribution, "version": p.version, "error": p.error} for p in found.plugins
    ]
    return {"heads": heads, "patches": patches, "plugins": plugins}


def _print(found: Registry) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False, markup=False)
    listed = describe(found)
    table = Table("head", "trigger", "task token", "input token", "from", box=None, pad_edge=False)
    for head in listed["heads"]:
        source = f"{head['distribution']} {head['version']}".strip() + (" (CLASH)" if head["clash"] else "")
        table.add_row(head["name"], head["trigger"], head["task_token"], head["input_token"] or "-", source)
    if listed["heads"]:
        console.print(table)
    else:
        console.print("No head is installed. For example: pip install tpo-head-region")
    for patch in listed["patches"]:
        console.print(f"patch {patch['name']}: {patch['distribution']} {patch['version']}")
    for plugin in found.plugins:
        if plugin.error is not None:
            console.print(f"\nnot in use: {plugin.name} ({plugin})\n{plugin.error.rstrip()}")
