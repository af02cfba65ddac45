"""The commands `tpo evaluate-moments` and `tpo cache-features`. No torch in here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate_moments(
    predictions: Annotated[Path, typer.Argument(help="Predictions, one query a line (JSON Lines, also .gz).")],
    truth: Annotated[Path, typer.Argument(help="True moments and saliency, one query a line.")],
    common_only: Annotated[
        bool, typer.Option("--common-only", help="Leave out queries that only one of the files has.")
    ] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write all metrics there, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all metrics as JSON.")] = False,
) -> None:
    """Metrics of QVHighlights, in percent: moment retrieval and highlights.

    A prediction has qid, pred_relevant_windows ([start, end, score] each, the best first) and pred_saliency_scores (a
    number per clip of 2 seconds); either may be missing.
    """
    from tpo_head_temporal.qvhighlights import evaluate_files

    results = evaluate_files(predictions, truth, common_only=common_only)
    if output is not None:
        output.write_text(json.dumps(results, indent=4) + "\n", encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(results, indent=4))
        return
    for name, value in results["brief"].items():
        typer.echo(f"{name:24}{value:6.2f}")


def cache_features(
    source: Annotated[Path, typer.Argument(help="Records (JSON Lines), or a folder of videos.")],
    model: Annotated[str, typer.Option(help="CLIP, SigLIP or vision tower: a folder or hub name.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the features.")],
    media_root: Annotated[
        Path | None, typer.Option(help="Where the records' videos are; by default beside them.")
    ] = None,
    confine: Annotated[
        bool,
        typer.Option("--confine", help="For records of others: refuse those that name files outside of their folder."),
    ] = False,
    clip_s: Annotated[float, typer.Option(help="Seconds of a clip; each gives one frame.")] = 2.0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode videos.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Frames that the model sees at once.")] = 64,
    device: Annotated[str, typer.Option(help="Device of the model.")] = "cpu",
) -> None:
    """Compute the features of videos and queries once, for the temporal head's features "files".

    The same call goes on after an interruption. A video that cannot be read is skipped, counted and named.
    """
    from tpo_head_temporal import caching

    report = caching.cache_features(
        source,
        model,
        output,
        media_root=media_root,
        confine=confine,
        clip_s=clip_s,
        num_workers=workers,
        batch_size=batch_size,
        device=device,
    )
    typer.echo(str(report))


def register(app: Any) -> None:
    """Adds the commands to the typer `app`."""
    for command in (evaluate_moments, cache_features):
        app.command(command.__name__.replace("_", "-"))(command)
