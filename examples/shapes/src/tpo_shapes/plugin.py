"""The command `tpo demo`, brought by this distribution. No torch in here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import tpo_plugin


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A few steps: shows the path, not the quality.")] = False,
    seed: Annotated[int, typer.Option(help="Of the data and of training.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
) -> None:
    """Train a small LLaVA-OneVision in the three stages and compare it with its baselines.

    Makes its own data, uses two CPU cores, and needs no network. Ends with a table of what was measured on held-out
    scenes, and with report.html in the folder of the run. The same call goes on with a run that was interrupted.
    """
    from tpo_shapes.demo import run_demo
    from tpo_shapes.recipe import FULL, QUICK

    run_demo(output, QUICK if quick else FULL, seed)


@tpo_plugin.hookimpl
def register_commands(app: Any) -> None:
    """Adds `tpo demo`."""
    app.command("demo")(demo)
