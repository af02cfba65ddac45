"""`tpo check`: every record of files, without a host and without weights."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpo_plugin.cli.options import Confine, head_names
from tpo_plugin.config import TPOConfig
from tpo_plugin.errors import RecordError, TPOError

if TYPE_CHECKING:
    from tpo_plugin.data.check import CheckReport
    from tpo_plugin.data.format import RecordFormat
    from tpo_plugin.data.sheet import Sheet
    from tpo_plugin.training.config import DataSource, TrainConfig


def check(
    data: Annotated[
        list[str] | None,
        typer.Argument(metavar="DATA...", help="Files of records (.jsonl, .json; also packed, in a tar, or a URL)."),
    ] = None,
    heads: Annotated[str | None, typer.Option(help="Names of heads, with commas; by default all installed.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration of `tpo train`: heads with their configurations, how videos are read, data."),
    ] = None,
    media_root: Annotated[
        Path | None, typer.Option(help="Folder of the media; by default that of each file of records.")
    ] = None,
    confine: Confine = False,
    media: Annotated[bool, typer.Option("--media", help="Open every picture and video too.")] = False,
    prompts: Annotated[bool, typer.Option("--prompts", help="Records may end with a question.")] = False,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Contact sheet to write (.png, .jpg): a sample of records with their tasks drawn on it."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one for each CPU core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    limit_errors: Annotated[int, typer.Option(min=1, help="Places that are shown of each kind of error.")] = 5,
) -> None:
    """Check every record of files: what each head's tasks are, and what is wrong.

    Needs no host and no weights. Without DATA the data of --config are checked. Exit status 1 if anything is wrong.
    """
    from rich.console import Console
    from rich.progress import Progress

    from tpo_plugin.data.check import check_files
    from tpo_plugin.data.format import RecordFormat
    from tpo_plugin.data.media import ImageOptions, VideoOptions

    if pictures is not None and pictures.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise TPOError(f"--pictures is {pictures}; expected a .png or .jpg")
    files: list[tuple[str | Path, str | Path | None]] = [(file, media_root) for file in data or []]
    names, settings = None if heads is None else head_names(heads), TPOConfig()
    video, image = VideoOptions(), ImageOptions()
    run: TrainConfig | None = None
    if config is not None:
        from tpo_plugin.training.config import TrainConfig

        run = TrainConfig.from_yaml(config)
        names, settings = names or run.heads or None, run.tpo
        video, image, confine = run.data.video, run.data.image, confine or run.data.confine
        sources = [source for stage in run.stages.values() for source in (*stage.data, *stage.eval_data)]
        files = files or list(dict.fromkeys((source.file, media_root or source.media) for source in sources))
    if not files:
        raise TPOError("no file to check; give files of records, or --config with data in its stages")
    format = RecordFormat.of_heads(names, settings)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("records")
        report = check_files(
            files,
            format,
            video=video if media else None,
            image=image,
            open_ended=prompts,
            confine=confine,
            workers=workers or _num_cores(),
            limit=limit_errors,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    stages = {name: _mix(stage.data, report) for name, stage in run.stages.items()} if run is not None else {}
    sheet, undrawn = None, None
    if pictures is not None:
        try:
            sheet = _sheet(pictures, files, format, video=video, image=image, open_ended=prompts, confine=confine)
        except TPOError as error:  # told behind the report, which may say why
            undrawn = error
    if as_json:
        described = _describe(report) | ({"stages": stages} if run is not None else {})
        described |= {"pictures": {"file": str(pictures), **asdict(sheet)}} if sheet is not None else {}
        typer.echo(json.dumps(described, indent=2))
    else:
        typer.echo("\n".join([_as_text(report), *_mixes(stages), *([] if sheet is None else _said(pictures, sheet))]))
    if undrawn is not None:
        raise undrawn
    if report.errors:
        raise typer.Exit(1)


def _sheet(
    path: Path, files: list[tuple[str | Path, str | Path | None]], format: RecordFormat, **options: Any
) -> Sheet:
    from tpo_plugin.data.opening import open_source
    from tpo_plugin.data.sheet import write_sheet
    from tpo_plugin.data.storage import local_path, media_folder

    opened = []
    for file, root in files:
        with contextlib.suppress(RecordError):  # the report has it
            data = open_source(file)
            opened.append((str(file), data, local_path(root) if root is not None else media_folder(file)))
    return write_sheet(path, opened, format, **options)


def _said(path: Path | None, sheet: Sheet) -> list[str]:
    lines = [f"drawn: {path}, {sheet.drawn} records"]
    lines += [f"  head {name!r} draws no tasks" for name in sheet.silent]
    return lines + [f"  cannot be drawn: {reason}" for reason in sheet.failed]


def _num_cores() -> int:
    known = hasattr(os, "sched_getaffinity")  # which cores this process may use: on Linux
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def _describe(report: CheckReport) -> dict[str, Any]:
    return {
        "records": report.records,
        "without_tasks": report.without_tasks,
        "files": {name: asdict(count) for name, count in report.files.items()},
        "heads": {name: asdict(count) for name, count in report.heads.items()},
        "warnings": report.warnings(),
        "errors": [{"kind": kind, **asdict(found)} for kind, found in report.errors.items()],
    }


def _mix(sources: Sequence[DataSource], report: CheckReport) -> dict[str, int]:
    """Samples of an epoch by the file that they come from: good records times the file's weight."""
    counts = {name: found.records - found.wrong for name, found in report.files.items()}
    return {source.file: round(source.weight * counts.get(source.file, 0)) for source in sources}


def _mixes(stages: dict[str, dict[str, int]]) -> Iterator[str]:
    for name, mix in stages.items():
        total = sum(mix.values())
        yield f"{name}: {total} samples an epoch"
        yield from (f"  {file}: {num} ({num / max(total, 1):.1%})" for file, num in mix.items())


def _as_text(report: CheckReport) -> str:
    wrong = sum(found.count for found in report.errors.values())
    lines = [f"{report.records} records: {wrong or 'none'} wrong, {report.without_tasks} without tasks"]
    lines += [
        f"  {name}: {count.tasks} tasks in {count.records} records, {count.tokens} tokens"
        for name, count in report.heads.items()
    ]
    without_media = any(count.without_media for count in report.files.values())
    for name, of_file in report.files.items() if len(report.files) > 1 or without_media else ():
        line = f"  {name}: {of_file.records} records, {of_file.wrong or 'none'} wrong"
        if of_file.without_media:
            line += f", media of {of_file.without_media} missing; first {of_file.missing}"
        lines.append(line)
    lines += [f"  {warning}" for warning in report.warnings()]
    for kind, found in sorted(report.errors.items(), key=lambda item: -item[1].count):
        if found.count == 1:
            lines += found.first
            continue
        lines.append(f"{found.count} x {kind}")
        lines += [f"  {message}" for message in found.first]
        if found.count > len(found.first):
            lines.append(f"  and {found.count - len(found.first)} more")
    return "\n".join(lines)
