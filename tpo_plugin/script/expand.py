"""A row of a script's data: its tasks, and its texts with tokens in the place of placeholders. No torch in here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tpo_plugin.config import TPOConfig, config_from_dict
from tpo_plugin.data.format import RecordFormat
from tpo_plugin.data.records import Turn, check_tasks, expand_turns
from tpo_plugin.data.sources import RecordFile
from tpo_plugin.errors import RecordError, TPOError
from tpo_plugin.script.settings import ScriptSettings

COLUMN = "tpo_tasks"
"""Column that holds a row's tasks, as `pack` writes them, from the first `map` over its dataset to the collator."""

TASKS = ("tasks", COLUMN)
"""Columns that tasks stand in."""

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_PROMPTS = ("prompt", "question", "instruction", "input", "query", "system")
"""Keys of a row whose text the user says; every other text of a row without roles is an answer."""


@dataclass(frozen=True)
class ScriptTasks:
    """Names what reads the tasks of rows; small and the same in every run, since caches of maps are named by it."""

    heads: tuple[str, ...]
    config: str
    """As JSON."""
    data: str
    """`ScriptSettings.data`."""
    digest: str
    """Of the file's content."""

    @classmethod
    def of(cls, settings: ScriptSettings) -> ScriptTasks:
        """Those of a run. Raises `TPOError` where its file of tasks cannot be read."""
        try:
            digest = hashlib.sha256(Path(settings.data).read_bytes()).hexdigest() if settings.data else ""
        except OSError as error:
            raise TPOError(f"tpo run: --data {settings.data}: {error.strerror or error}") from error
        return cls(tuple(settings.heads), json.dumps(settings.config, sort_keys=True), settings.data, digest)

    @property
    def format(self) -> RecordFormat:
        """What checks tasks and knows the tokens."""
        return _format(self.heads, self.config)

    @property
    def by_id(self) -> Mapping[str, Any]:
        """Tasks by the `id` of a row."""
        return _by_id(self.data) if self.data else {}


def check_data(settings: ScriptSettings) -> None:
    """Raises `TPOError` where a task in the file of `tpo run --data` is wrong."""
    tasks = ScriptTasks.of(settings)
    for name, given in tasks.by_id.items():

        def wrong(field: str, message: str, name: str = name) -> RecordError:
            return RecordError(message, file=f"{settings.data} (id {name})", field=field)

        check_tasks({"tasks": given}, tasks.format, Path("."), wrong)


@cache
def _format(heads: tuple[str, ...], config: str) -> RecordFormat:
    return RecordFormat.of_heads(heads, config_from_dict(TPOConfig, json.loads(config), where="tpo run"))


@cache
def _by_id(path: str) -> dict[str, Any]:
    """Raises `RecordError` for a record without an id, and for an id that two records have."""
    found: dict[str, Any] = {}
    records = RecordFile(path)
    for index in range(len(records)):
        record, (line, prefix) = records[index], records.place(index)
        name = record.get("id") if isinstance(record, Mapping) else None
        if name is None or str(name) in found:
            reason = "is missing, which the tasks are found by" if name is None else f"{name!r} stands there twice"
            raise RecordError(reason, file=path, line=line, field=f"{prefix}id")
        found[str(name)] = record.get("tasks") or []
    return found


def take_tasks(
    row: Mapping[str, Any], format: RecordFormat, by_id: Mapping[str, Any], place: str
) -> tuple[dict[str, Any], list[Turn]]:
    """The row without its tasks and with tokens in its texts, and its turns, which hold the tasks.

    Tasks stand in the row itself, or in `by_id` under the row's `id`. The k-th placeholder of a head takes that head's
    k-th task. A row without placeholders keeps its texts: they are to come, or tokens stand there already; then
    everything is to be predicted. Raises `RecordError`.
    """
    rest = {key: value for key, value in row.items() if key not in TASKS}
    name = str(rest.get("id", place))

    def wrong(field: str, message: str) -> RecordError:
        return RecordError(message, file=place if name == place else f"{place} (id {name})", field=field)

    roles, tasks = unpack(row.get(COLUMN))
    tasks = tasks or row.get("tasks") or by_id.get(name) or []
    if not tasks:
        return rest, []
    checked = check_tasks({"tasks": tasks}, format, Path("."), wrong)
    texts = [(role, text) for role, text in _texts(rest) if format.placeholder.search(text)]
    if not texts:
        return rest, [Turn(role, "", (task,)) for role, task in zip(roles or _answers(checked), checked, strict=True)]
    turns = expand_turns(texts, checked, format, wrong)
    replaced = iter(turns)

    def replace(value: Any) -> Any:
        if isinstance(value, str) and format.placeholder.search(value):
            text = next(replaced).text
            return value[: len(value) - len(value.lstrip())] + text.strip() + value[len(value.rstrip()) :]
        if isinstance(value, Mapping):
            return {key: replace(item) for key, item in value.items()}
        return [replace(item) for item in value] if isinstance(value, (list, tuple)) else value

    return replace(rest), turns


def pack(turns: list[Turn]) -> str:
    """Tasks as a text: Arrow cannot unify tasks of several heads, and no trainer pads a text. Without tasks empty."""
    found = [(turn.role, task) for turn in turns for task in turn.tasks]
    return json.dumps(found) if found else ""


def unpack(text: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """(roles, tasks) of what `pack` wrote."""
    found = json.loads(text) if isinstance(text, str) and text else []
    return [role for role, _ in found], [task for _, task in found]


def _answers(tasks: list[Any]) -> list[str]:
    return ["assistant"] * len(tasks)


def _texts(value: Any, role: str | None = None) -> Iterator[tuple[str, str]]:
    """(role, text) of every text in a row, in its order."""
    if isinstance(value, str):
        yield role or "assistant", value
    elif isinstance(value, Mapping):
        said_by = _ROLES.get(str(value.get("role", value.get("from"))), role)
        for key, item in value.items():
            yield from _texts(item, said_by or ("user" if str(key) in _PROMPTS else None))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item, role)
