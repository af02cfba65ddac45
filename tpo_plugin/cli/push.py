"""`tpo push`: a finished run, or an export, to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    directory: Annotated[Path, typer.Argument(help="Directory of a finished run, or a folder of tpo export.")],
    name: Annotated[str, typer.Argument(help="Repository, org/name; made where it is missing.")],
    revision: Annotated[str | None, typer.Option(help="Branch, by default the main one.")] = None,
    private: Annotated[bool | None, typer.Option(help="Whether a repository that is made is private.")] = None,
) -> None:
    """Push a finished run without its checkpoints, or an export, to the Hugging Face Hub, with its model card.

    The account is that of the hub's own command line (hf auth login) or HF_TOKEN. run.json and config.yaml hold the
    paths of the run's data and host.
    """
    from tpo_plugin.hub import push_to_hub

    typer.echo(f"pushed: {push_to_hub(directory, name, revision=revision, private=private)}")
