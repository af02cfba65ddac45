"""`tpo export`: a trained run as a checkpoint that any engine runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tpo_plugin.cli.options import Host


def export(
    run: Annotated[Path, typer.Argument(help="Directory of a trained run, or of a checkpoint of it.")],
    directory: Annotated[Path, typer.Argument(help="New folder.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge LoRA alone, and leave the rest as it is.")] = False,
    host: Host = None,
) -> None:
    """Write a trained run as a plain checkpoint that emits triggers without tpo-plugin, with its heads beside it.

    The heads turn the states that any engine computes into predictions: tpo_plugin.load_heads.
    """
    from tpo_plugin.export import export_run

    untied = export_run(run, directory, host=host, merge=merge)
    typer.echo(f"exported: {directory}")
    if untied:
        typer.echo("input and output embeddings were one matrix, and are two: a trigger's row is another in each")
