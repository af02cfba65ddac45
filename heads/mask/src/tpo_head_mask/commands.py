"""The command `tpo score-masks`. No torch in here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def score_masks(
    truth: Annotated[Path, typer.Argument(help="Folder with a folder of PNGs for each sequence.")],
    predicted: Annotated[Path, typer.Argument(help="Folder of the predictions, laid out like the truth.")],
    all_frames: Annotated[
        bool, typer.Option("--all-frames", help="Score the first and the last frame of each sequence too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score predicted video masks by J, F and J&F.

    A sequence holds either a PNG of object ids for each frame (DAVIS), or a folder of PNGs for each object (SA-V).

    SA-V's rule holds in both layouts: frames before an object appears do not count; davis2017-evaluation counts them.
    """
    from tpo_head_mask.jf import RULE
    from tpo_head_mask.score import score_folders, table

    scores = score_folders(truth, predicted, skip_ends=not all_frames)
    typer.echo(table(scores, as_json=as_json))
    typer.echo(RULE, err=as_json)


def add_commands(app: Any) -> None:
    """Adds it to `tpo`."""
    app.command("score-masks")(score_masks)
