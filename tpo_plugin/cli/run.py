"""`tpo run`: a training script as it is, with TPO applied to the model that its trainer is made with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tpo_plugin.cli.options import head_names
from tpo_plugin.errors import TPOError
from tpo_plugin.plugins import registry
from tpo_plugin.script.expand import check_data
from tpo_plugin.script.settings import ScriptSettings, read_config


def run(
    command: Annotated[list[str], typer.Argument(help="The script with its launcher and arguments, after `--`.")],
    heads: Annotated[str, typer.Option(help="Names of heads, with commas between them.")],
    config: Annotated[
        Path | None, typer.Option(help="YAML file with loss_weights and heads, the fields of TPOConfig.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Records whose tasks go to the script's rows with the same id, where its data cannot hold them."
        ),
    ] = None,
) -> None:
    """Run a training script unchanged, with TPO on the model that it trains.

    For example: tpo run --heads region -- torchrun --nproc_per_node 8 train.py --output_dir out
    """
    names = head_names(heads)
    for name in names:
        registry().head(name)
    settings = ScriptSettings(
        heads=names,
        config={} if config is None else read_config(config),
        data="" if data is None else str(data.absolute()),
    )
    check_data(settings)
    with tempfile.TemporaryDirectory(prefix="tpo-run-") as folder:
        marker = Path(folder) / "trainers"
        settings.marker = str(marker)
        code = _start(command, {**os.environ, **settings.environment()})
        if code == 0 and not marker.exists():
            raise TPOError(
                f"{command[0]} ended without making a transformers Trainer, or a step of Accelerate or Lightning, so "
                "nothing was trained with TPO: any other loop needs apply_tpo(model, tokenizer) in it, a launcher must "
                "stay in the foreground, and its Python must have tpo-plugin and read PYTHONPATH"
            )
    sys.exit(code)


def _start(command: list[str], environment: dict[str, str]) -> int:
    """The command's exit status; signals that would end this process go to the command, which ends on its own."""
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise TPOError(f"{command[0]} cannot be started: {error.strerror or error}") from error
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: process.send_signal(received))
    code = process.wait()
    return code if code >= 0 else 128 - code
