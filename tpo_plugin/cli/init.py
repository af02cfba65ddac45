"""`tpo init`: a training file with comments, for data that it looks at first."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tpo_plugin.cli.options import head_names
from tpo_plugin.errors import TPOError

_RECORDS = ".records.jsonl"


def init(
    context: typer.Context,
    file: Annotated[Path, typer.Option("--output", "-o", help="Training file to write.")] = Path("train.yaml"),
    host: Annotated[str | None, typer.Option(help="Folder or hub name of the model to train.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="File of records; may be given several times.")] = None,
    eval_data: Annotated[list[str] | None, typer.Option(help="File of held-out records; several times too.")] = None,
    media_root: Annotated[str | None, typer.Option(help="Folder of the media; by default each file's own.")] = None,
    heads: Annotated[
        str | None, typer.Option(help="Names of heads, with commas; by default those of the data.")
    ] = None,
    output_dir: Annotated[str, typer.Option(help="Folder of the run to be.")] = "runs/first",
    format: Annotated[
        str | None, typer.Option(help="Format of --data, one of `tpo convert`, whose other options may follow.")
    ] = None,
) -> None:
    """Write a training file for your host, data and heads, with a comment for every key.

    Looks at every record first, as `tpo check` does. What is not given is asked for, at a terminal. `tpo check
    --config` and `tpo train` take the file as it is.
    """
    from tpo_plugin.data.check import check_files
    from tpo_plugin.data.format import RecordFormat
    from tpo_plugin.training.config import TrainConfig
    from tpo_plugin.training.starter import as_yaml, starting_values

    if context.args and format is None:
        raise TPOError(f"{' '.join(context.args)}: is no option of `tpo init`; those of `tpo convert` need --format")
    if format is not None and media_root is not None and not eval_data:
        raise TPOError(
            "--media-root was given with --format; converted records name their media by themselves, so leave it out"
        )
    if file.exists():
        raise TPOError(f"{file} is there already; name another file, or remove it")
    host = _checked_host(host or _ask("Host to train, a folder or a name on the hub", "--host"))
    sources = data or [_ask("File of records", "--data")]
    names = None if heads is None else head_names(heads)
    checked = RecordFormat.of_heads(names)
    data_root = media_root
    if format is not None:
        outputs = _outputs(sources, file)
        for source, output in zip(sources, outputs, strict=True):
            _convert(format, source, context.args, output)
        sources, data_root = [str(output) for output in outputs], None  # they name their media from where they lie
    files = [(source, data_root) for source in sources]
    report = check_files([*files, *((source, media_root) for source in eval_data or ())], checked)
    if report.errors:
        first = "\n".join(found.first[0] for found in report.errors.values())
        raise TPOError(f"{first}\nexpected records that `tpo check` finds nothing wrong with; other layouts: --format")
    if eval_data:  # steps are of the training records alone
        report = check_files(files, checked)
    values = starting_values(
        host=host,
        output_dir=output_dir,
        heads=names,
        data=[_source(source, data_root) for source in sources],
        eval_data=[_source(source, media_root) for source in eval_data or ()],
        report=report,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(as_yaml(values, report), encoding="utf-8")
    TrainConfig.from_yaml(file)  # as `tpo train` reads it
    counted = ", ".join(f"{count.tasks} of {name}" for name, count in report.heads.items())
    typer.echo(f"{file}: {report.records} records, tasks: {counted}\nnext: tpo train {file}")


def _ask(question: str, option: str) -> str:
    if not _at_terminal():
        raise TPOError(f"{option} is missing; expected it where nobody can be asked")
    return str(typer.prompt(question))


def _at_terminal() -> bool:
    return sys.stdin.isatty()


def _checked_host(host: str) -> str:
    """The host's name, of a folder only where it is one. A name on the hub is asked for when it is trained."""
    path = Path(host)
    if path.exists() and not (path / "config.json").is_file():
        raise TPOError(f"--host is {host}, which has no config.json; expected the folder of a model")
    if not path.exists() and host.count("/") != 1:
        raise TPOError(f"--host is {host}; expected a folder that is there, or a name on the hub (org/name)")
    return host


def _source(file: str, media: str | None) -> dict[str, str]:
    return {"file": file} | ({"media": media} if media is not None else {})


def _outputs(sources: Sequence[str], file: Path) -> list[Path]:
    """The records to write of each source, beside the training file. Raises `TPOError` where one is there already."""
    outputs: list[Path] = []
    for source in sources:
        stem = Path(os.path.abspath(source)).name.lstrip(".").partition(".")[0] or "data"
        output, number = file.with_name(f"{stem}{_RECORDS}"), 2
        while output in (file, *outputs):  # of another folder, by the same name
            output, number = file.with_name(f"{stem}-{number}{_RECORDS}"), number + 1
        if output.exists():
            raise TPOError(
                f"{output} is there already, where the records of {source} were to go; remove it, write the training "
                "file to another folder (--output), or give it as --data without --format"
            )
        outputs.append(output)
    return outputs


def _convert(format: str, source: str, options: list[str], output: Path) -> None:
    """Writes the records that `tpo convert` makes of a source."""
    from tpo_plugin.cli import convert

    group: Any = typer.main.get_command(convert.app)
    command = group.get_command(None, format)
    arguments = [source, *options, "--output", str(output)]
    command.main(arguments, prog_name=f"tpo convert {format}", standalone_mode=False)
