"""`tpo train`: the training stages of one configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tpo_plugin.cli.options import Confine


def train(
    config: Annotated[Path, typer.Argument(help="YAML file with host, heads, data and stages.")],
    resume: Annotated[bool, typer.Option(help="Go on with a run that was interrupted, or refuse its folder.")] = True,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on though data or host are not what the run began with.")
    ] = False,
    attn: Annotated[
        str | None,
        typer.Option(help="Attention, over the configuration's: auto (flash attention where it can run), sdpa, ..."),
    ] = None,
    confine: Confine = False,
) -> None:
    """Train a host with its heads in the stages of a configuration file."""
    from tpo_plugin.training.config import TrainConfig

    settings = TrainConfig.from_yaml(config)
    from tpo_plugin.training.run import train as train_run  # loads torch, which a wrong file need not wait for

    settings.attn = attn or settings.attn
    settings.data.confine |= confine
    try:
        run = train_run(settings, resume=resume, accept_changes=accept_changes)
    except KeyboardInterrupt:  # while no stage trains, which would first write a checkpoint
        typer.echo(f"SIGINT: what {settings.output_dir} has stays, and the same command goes on from it", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"run: {run}")
