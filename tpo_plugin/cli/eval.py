"""`tpo eval`: what a run answers to held-out questions, and what that is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tpo_plugin.cli.options import Confine, Host


def evaluate(
    run: Annotated[Path, typer.Argument(help="Directory of a run, or of a checkpoint of one: RUN/STAGE/checkpoint-N.")],
    data: Annotated[list[str], typer.Option(help="File of records; repeatable, each is a split of its own.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the results; by default RUN/eval/NAMES.")
    ] = None,
    host: Host = None,
    media: Annotated[Path | None, typer.Option(help="Folder that the paths of images and videos start from.")] = None,
    confine: Confine = False,
    route: Annotated[
        str | None,
        typer.Option(help="Ask only the questions that want this head, with its call forced: its worth by itself."),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help="Published scorer to add: refcoco, grefcoco, coco, charades, ... (docs/evaluate.md)."),
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Ask each question without the turns that stand before it.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions that are answered together.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many questions only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json.")] = False,
) -> None:
    """Ask a run the questions of records, with nothing forced, and score its answers.

    Every answer of every record is asked for, with the record's own turns before it. The same command goes on where
    it was stopped. On several GPUs: torchrun --nproc_per_node 8 --no-python tpo eval RUN --data FILE
    """
    from rich.console import Console
    from rich.progress import Progress

    from tpo_plugin.evaluate.run import REPORT_FILE, Evaluation, evaluate
    from tpo_plugin.evaluate.table import table
    from tpo_plugin.training.ranks import joined_ranks

    evaluation = Evaluation(
        run=run,
        data=tuple(data),
        output=output,
        host=host,
        media=media,
        confine=confine,
        route=route,
        benchmark=benchmark,
        alone=alone,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        limit=limit,
    )
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("batches")
        results = evaluate(
            evaluation,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            say=lambda sentence: typer.echo(sentence, err=True),
        )
    if not joined_ranks().is_main_process:
        return
    typer.echo(json.dumps(results, indent=2) if as_json else table(results))
    if not as_json:
        typer.echo(f"report: {evaluation.folder() / REPORT_FILE}")
