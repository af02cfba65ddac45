"""`tpo convert`: records out of data as they are published. Each format of a plugin is a command of its own."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperGroup

from tpo_plugin.errors import TPOError, did_you_mean

if TYPE_CHECKING:
    from tpo_plugin.convert import Format
    from tpo_plugin.convert.format import FormatSpec


class _Formats(TyperGroup):
    """A command for each format."""

    def list_commands(self, ctx: Any) -> list[str]:
        from tpo_plugin.convert import formats

        return list(formats())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from tpo_plugin.convert import formats

        known = formats()
        if cmd_name not in known:
            raise TPOError(f"no format {cmd_name!r} is installed{did_you_mean(cmd_name, known)}")
        return _command(known[cmd_name])


app = typer.Typer(cls=_Formats, no_args_is_help=True, pretty_exceptions_enable=False)


def _list(value: bool) -> None:
    if value:
        from tpo_plugin.convert import formats

        by_plugin: dict[str, list[str]] = {}
        for spec in formats().values():
            by_plugin.setdefault(str(spec.plugin), []).append(f"  {spec.name:20}{spec.help}")
        for plugin, lines in by_plugin.items():
            typer.echo("\n".join([f"from {plugin}:", *lines]))
        raise typer.Exit


@app.callback()
def convert(
    list_formats: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List the installed formats.")
    ] = False,
) -> None:
    """Make records from data as they are published: `tpo convert FORMAT SOURCE... -o records.jsonl`.

    What cannot be used is left out, counted, and named by its first places.
    """


def _command(spec: FormatSpec) -> Any:
    cls = spec.format_class()

    def run(output: Path, exclude_images: str | None, keep_going: bool, **given: Any) -> None:
        named: dict[Path, str] = {}
        format = cls(**{name: _value(value, named if name in paths else None) for name, value in given.items()})
        format.named.update(named)
        _run(format, output, exclude_images, keep_going)

    hints = typing.get_type_hints(cls, include_extras=True)
    paths = {name for name, hint in hints.items() if _is_path(hint)}
    parameters = [*_parameters(cls, hints), *_COMMON]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = inspect.getdoc(cls)
    one = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    one.command(spec.name)(run)
    return typer.main.get_command(one)


def _run(format: Format, output: Path, exclude_images: str | None, keep_going: bool) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from tpo_plugin.convert import Report, convert, local, read_excluded

    console = Console(stderr=True)
    exclude = read_excluded(local(exclude_images)) if exclude_images is not None else ()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("entries")
        report = Report(progress=lambda done, total: bar.update(task, completed=done, total=total))
        try:
            convert(format, output, exclude=exclude, keep_going=keep_going, report=report)
        except TPOError as error:
            raise TPOError(_as_named(str(error), format)) from error
    typer.echo(_as_named(f"{output}: {report}", format))


def _as_named(text: str, format: Format) -> str:
    """A message with the names that were given, in place of the copies that were read."""
    for path, given in format.named.items():
        if path != Path(given):
            text = text.replace(str(path), given)
    return text


_COMMON = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    for name, default, annotation in (
        (
            "output",
            inspect.Parameter.empty,
            Annotated[Path, typer.Option("--output", "-o", help="Records to write, JSON Lines.")],
        ),
        (
            "exclude_images",
            None,
            Annotated[
                str | None,
                typer.Option(help="Pictures to leave out: a file of ids or names, one a line, or of records."),
            ],
        ),
        (
            "keep_going",
            False,
            Annotated[
                bool,
                typer.Option(
                    "--keep-going", help="Write what fits even where the whole contradicts what was declared."
                ),
            ],
        ),
    )
]


def _parameters(cls: type[Format], hints: Mapping[str, Any]) -> list[inspect.Parameter]:
    """The fields of a format as parameters of a command."""
    found = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        default: Any = inspect.Parameter.empty
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        hint = _for_typer(hints[field.name])
        found.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint))
    return found


def _is_path(hint: Any) -> bool:
    return hint is Path or any(_is_path(part) for part in get_args(hint))


def _value(given: Any, named: dict[Path, str] | None) -> Any:
    """What typer parsed, as the format takes it; with `named` a source, which is fetched and unpacked where need be."""
    from tpo_plugin.convert import local

    if isinstance(given, list):
        return [_value(value, named) for value in given]
    if isinstance(given, enum.Enum):
        return given.value
    if named is None or given is None:
        return given
    path = local(given)
    named[path] = given
    return path


def _for_typer(hint: Any) -> Any:
    """The annotation for typer: a path stays a text, as it may be a URL, and a `Literal` is an enumeration."""
    if get_origin(hint) is Annotated:
        kind, *notes = get_args(hint)
        return Annotated[(_for_typer(kind), *notes)]
    if hint is Path:
        return str
    if get_origin(hint) is list:
        return list[_for_typer(get_args(hint)[0])]  # type: ignore[misc]
    if get_origin(hint) is Literal:
        return enum.Enum("Choice", [(str(value), str(value)) for value in get_args(hint)], type=str)
    if type(None) in get_args(hint):
        (kind,) = (kind for kind in get_args(hint) if kind is not type(None))
        return typing.Optional[_for_typer(kind)]  # noqa: UP045
    return hint
