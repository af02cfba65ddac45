"""`python -m tests.pages`: the parts of the pages that are made from what the program declares.

A part stands between `<!-- made: NAME -->` and `<!-- made: end -->`; the rest of a page is written by hand. Commands
come from the argument parsers, keys from the dataclasses that check them, the heads from their metadata and what they
register, the hosts from the survey's results, the demo's tables from what its seeds measured, those of docs/effect.md
from what the ablation did; until it did, there is no such page.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tomllib
import typer
from tpo_shapes import effect, many, seeds

import tpo_plugin.cli
from tests.survey.table import table as hosts_table
from tpo_plugin.config import HeadConfig
from tpo_plugin.keys import keys_of
from tpo_plugin.plugins import registry
from tpo_plugin.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "examples" / "shapes" / "README.md"]
"""Those that may have such parts."""
PART = re.compile(r"(<!-- made: (\w+) -->\n)(.*?)(<!-- made: end -->\n)", re.DOTALL)


def main() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if PART.search(text):
            page.write_text(made(text), encoding="utf-8")


def made(page: str) -> str:
    """A page with its parts as they are made now."""
    return PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}{part[4]}", page)


# -- tables ------------------------------------------------------------------------------------------------------------


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in row)} |\n" for row in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    """A text as code, and its line as it is."""
    return f"`{text}`" if text else ""


def _in_pages(text: str) -> str:
    """A docstring with what Markdown would take for tags as code: `<region>`."""
    return re.sub(r"(`[^`]*`)|(</?[\w-]+>)", lambda match: match[1] or f"`{match[2]}`", text)


# -- keys --------------------------------------------------------------------------------------------------------------


def training_keys() -> str:
    """The keys of a training file, a table for each dataclass, in the order in which they are met."""
    return "\n".join(_keys(path, config) for path, config in _configs("", TrainConfig))


def _configs(path: str, config: type) -> Iterator[tuple[str, type]]:
    """Each dataclass below one, by the path at which its keys stand: "data.video", "stages.NAME.data[]"."""
    yield path, config
    for key in keys_of(config):
        if key.below is not None and key.name != "eval_data":  # the same as data
            steps = {"stages": ".NAME", "data[]": "[]"}
            inner = f"{path}.{key.name}".lstrip(".") + steps.get(key.name, "[]" if key.admits == "a list" else "")
            yield from _configs(inner, key.below)


def _keys(path: str, config: type, known: tuple[str, ...] = ()) -> str:
    title = f"## `{path}`" if path else "## The file"
    return f"{title}\n\n{_about(config)}\n\n{_key_table(config, known)}"


def _about(config: type) -> str:
    """What a configuration says of itself; nothing where its docstring is the one that every dataclass has."""
    text = config.__doc__ or ""
    return "" if text.startswith(f"{config.__name__}(") else " ".join(inspect.cleandoc(text).split())


def _key_table(config: type, known: tuple[str, ...] = ()) -> str:
    rows = []
    for key in keys_of(config):
        if key.name in known:
            continue
        if key.default is dataclasses.MISSING:
            default = "must be given"
        elif key.below is not None and key.default:
            default = "see below"
        else:
            default = _code(json.dumps(key.default))
        rows.append((_code(key.name), _in_pages(key.admits), default, _in_pages(key.about)))
    return _table(("key", "value", "default", ""), rows)


def head_keys() -> str:
    """The keys of `tpo.heads.NAME`, of every head in this repository."""
    common = [key.name for key in keys_of(HeadConfig)]
    parts = [f"## Every head\n\n{_key_table(HeadConfig)}"]
    for name, spec in sorted(_heads().items()):
        config = spec.config_class()
        weight = f"Beside other heads its loss has the weight {config.weight_beside_others:g}, unless you set another."
        about = "\n\n".join(filter(None, (_about(config), weight if config.weight_beside_others != 1 else "")))
        parts.append(f"## `{name}`\n\n{about}\n\n{_key_table(config, tuple(common))}".replace("\n\n\n\n", "\n\n"))
    return "\n".join(parts)


# -- commands ----------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command of the core and of what is in this repository, but those of `tpo convert`."""
    group: Any = typer.main.get_command(tpo_plugin.cli.app)
    names = [name for name in group.list_commands(None) if name != "convert"]
    return "\n".join(_command(f"tpo {name}", group.get_command(None, name)) for name in names)


def formats() -> str:
    """Every format of `tpo convert`, with what is common to all of them first."""
    group: Any = typer.main.get_command(tpo_plugin.cli.app).get_command(None, "convert")  # type: ignore[attr-defined]
    found = {name: group.get_command(None, name) for name in sorted(group.list_commands(None))}
    common = ["output", "exclude_images", "keep_going"]
    parts = [p for p in next(iter(found.values())).params if p.name in common]
    first = f"## Every format\n\n{_parameters(parts)}"
    return "\n".join([first, *(_command(f"tpo convert {name}", one, common) for name, one in found.items())])


def _command(name: str, command: Any, known: list[str] | None = None) -> str:
    inner = getattr(command, "commands", None)
    if inner:
        return "\n".join(_command(f"{name} {sub}", each) for sub, each in sorted(inner.items()))
    parameters = [p for p in command.params if p.name not in ["help", *(known or ())]]
    needed = [f"{max(p.opts, key=len)} {_metavar(p)}" for p in command.params if _is_option(p) and p.required]
    usage = " ".join([name, *needed, *(_argument(p) for p in parameters if not _is_option(p))])
    about = _in_pages(re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.help or "")))
    table = _parameters(parameters) if parameters else ""
    return f"## `{name}`\n\n{about}\n\n    {usage}\n\n{table}"


def _is_option(parameter: Any) -> bool:
    return any(opt.startswith("-") for opt in parameter.opts)


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name.upper()).removesuffix("...")
    name += "..." if parameter.nargs == -1 else ""
    return name if parameter.required else f"[{name}]"


def _parameters(parameters: list[Any]) -> str:
    rows = []
    for parameter in sorted(parameters, key=_is_option):  # arguments first
        if not _is_option(parameter):
            rows.append((_code(_argument(parameter)), "", parameter.help or ""))
            continue
        names = " ".join(sorted(parameter.opts, key=len))
        if parameter.secondary_opts:
            names += f" / {' '.join(parameter.secondary_opts)}"
        value = "" if parameter.is_flag else f" {_metavar(parameter)}"
        default = "must be given" if parameter.required else _default(parameter)
        variable = f" (variable `{parameter.envvar}`)" if parameter.envvar else ""
        rows.append((_code(f"{names}{value}"), default, _in_pages(parameter.help or "") + variable))
    return _table(("", "default", ""), rows)


def _metavar(parameter: Any) -> str:
    choices = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    if isinstance(choices, type) and issubclass(choices, str) and hasattr(choices, "__members__"):
        return "|".join(choices.__members__)
    return parameter.metavar or parameter.name.upper()


def _default(parameter: Any) -> str:
    default = parameter.default
    if callable(default):
        default = default()
    if default is None or default is False or default in ((), []):
        return ""
    return "on" if default is True else _code(str(getattr(default, "value", default)))


# -- heads and hosts ---------------------------------------------------------------------------------------------------


def _projects() -> dict[str, tuple[Path, dict[str, Any]]]:
    """Folder and metadata of each plugin with heads in this repository, by its name."""
    found = {}
    for file in sorted(ROOT.glob("heads/*/pyproject.toml")):
        project = tomllib.loads(file.read_text())["project"]
        (name,) = project["entry-points"]["tpo_plugin"]
        found[name] = file.parent, project
    return found


def _heads() -> dict[str, Any]:
    return {name: spec for name, spec in registry().heads.items() if spec.plugin.name in _projects()}


def heads_table() -> str:
    """The heads in this repository, from their metadata and what they register."""
    rows, projects = [], _projects()
    for name, spec in _heads().items():
        folder, project = projects[spec.plugin.name]
        link = f"[{project['name']}](../heads/{folder.name}/README.md)"
        given = _code(spec.input_token or "") or "nothing"
        # What a package brings beside the head of its own name says itself what it is.
        about = project["description"].partition(": ")[2] if name in projects else _about(spec.config_class())
        if not spec.default:
            link, about = f"{link}: `{name}`", f"{about} Applied where it is named."
        rows.append((link, f"`{spec.trigger}` `{spec.task_token}`", given, about, project["license"]))
    return _table(("head", "trigger, task token", "given in the prompt", "what it is", "licence"), rows)


# -- the demo ----------------------------------------------------------------------------------------------------------


def demo_scores() -> str:
    """All that the demo's seeds measured of boxes and moments."""
    return _of_seeds(seeds.scores_table)


def demo_masks() -> str:
    """What its masks are worth."""
    return _of_seeds(seeds.masks_table)


def demo_chat() -> str:
    """Its conversation, by kind of question."""
    return _of_seeds(seeds.chat_table)


def demo_summary() -> str:
    """A line for each of those that answer, with the worst seed of TPO."""
    return _of_seeds(seeds.summary_table)


def demo_many() -> str:
    """Questions for none to twenty objects."""
    results = many.load_results()
    numbers = ", ".join(str(result["seed"]) for result in results)
    title = f"Means of {len(results)} seeds ({numbers})" if len(results) > 1 else f"One seed ({numbers})"
    header, *rows = many.table(results)
    return f"{title}, in percent, and milliseconds:\n\n{_table(header, rows)}"


def _of_seeds(table: Callable[[list[seeds.Results]], list[tuple[str, ...]]]) -> str:
    """The table, below the seeds that it is of."""
    results = seeds.load_results()
    numbers = ", ".join(str(result["seed"]) for result in results)
    minutes = ", ".join(f"{result['seconds']['wall'] / 60:.1f}" for result in results)
    title = (
        f"Means of {len(results)} seeds ({numbers}; {minutes} minutes)"
        if len(results) > 1
        else f"One seed ({numbers}; {minutes} minutes)"
    )
    header, *rows = table(results)
    return f"{title}, in percent:\n\n{_table(header, rows)}"


# -- the ablation ------------------------------------------------------------------------------------------------------


def ablation() -> str:
    """What its cells measured: the paper's claims first, then all cells, then what the paper has no table of."""
    results = effect.load_results()
    seeds_of = ", ".join(map(str, sorted({result["seed"] for result in results})))
    hours = sum(result["seconds"] for result in results) / 3600
    versions = ", ".join(f"{name} {version}" for name, version in results[0]["versions"].items())
    parts = [
        f"{len(results)} trainings and hosts, seeds {seeds_of}; {hours:.1f} CPU hours, one thread each; {versions}.\n"
    ]
    for make in (effect.claims_table, effect.cells_table, effect.differences_table):
        title, (header, *rows) = make(results)
        note = f"{effect.RULE}\n\n" if make is effect.claims_table else ""
        parts.append(f"## {title}\n\n{note}{_table(header, rows)}")
    return "\n".join(parts)


PARTS: dict[str, Callable[[], str]] = {
    "training_keys": training_keys,
    "head_keys": head_keys,
    "commands": commands,
    "formats": formats,
    "heads": heads_table,
    "hosts": hosts_table,
    "demo_summary": demo_summary,
    "demo_scores": demo_scores,
    "demo_masks": demo_masks,
    "demo_chat": demo_chat,
    "demo_many": demo_many,
    **({"ablation": ablation} if effect.RESULTS.is_file() else {}),
}

if __name__ == "__main__":
    main()
