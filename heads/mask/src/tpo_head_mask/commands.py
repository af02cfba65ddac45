"""The commands `tpo convert-masks` and `tpo score-masks`. No torch in here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def convert_masks(
    format: Annotated[
        str,
        typer.Argument(
            help="davis, ref-davis, ref-youtube-vos, mevis, sa-v, lasot, got-10k or folder (images, masks)."
        ),
    ],
    root: Annotated[Path, typer.Argument(help="Folder of the dataset, as it is published.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON Lines file to write.")],
    split: Annotated[
        str | None, typer.Option(help='Part of the dataset; by default "train" where the format has parts.')
    ] = None,
) -> None:
    """Make records for the mask head from a dataset of masks or tracks.

    Samples that cannot be used (masks of another size than their image, unknown object ids, missing files) are left
    out, counted and listed.
    """
    from tpo_head_mask.convert import convert

    typer.echo(convert(format, root, output, split).report())


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
    """
    from tpo_head_mask.score import score_folders, table

    scores = score_folders(truth, predicted, skip_ends=not all_frames)
    typer.echo(table(scores, as_json=as_json))


def add_commands(app: Any) -> None:
    """Adds both to `tpo`."""
    app.command("convert-masks")(convert_masks)
    app.command("score-masks")(score_masks)
