"""`tpo new-head`: a package for a head of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def new_head(
    name: Annotated[str, typer.Argument(help="Name of the head: a lower-case identifier, for example point.")],
    directory: Annotated[Path, typer.Option("--directory", help="Where to make the package's folder.")] = Path(),
) -> None:
    """Write a head package that installs with pip and passes the conformance tests at once."""
    from tpo_plugin import scaffold

    typer.echo(scaffold.new_head(name, directory))
