"""`tpo train`: the training stages of one configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="YAML file with host, heads, data and stages.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
) -> None:
    """Train a host with its heads in the stages of a configuration file."""
    from tpo_plugin.training import run

    run.train(config, resume=resume)
