"""`map` of the library datasets, which forgets columns: rows keep their tasks, whatever a script maps over them.

A script tokenises before it makes its trainer, in a function that it gives to `Dataset.map`. The function is called
with tokens in the place of placeholders, and what it returns gets the row's tasks as one more column.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import signature
from types import ModuleType
from typing import Any

from tpo_plugin.data.records import Turn
from tpo_plugin.errors import TPOError
from tpo_plugin.script.expand import COLUMN, TASKS, ScriptTasks, pack, take_tasks
from tpo_plugin.script.settings import ScriptSettings

met: dict[str, int] = {}
"""Number of rows with tasks by the function that was mapped over them in this process, in order."""

PACKED = (
    "{name} joins rows (packing), so their tasks cannot be told apart: switch packing off (packing=False, and what the "
    "trainer calls sample packing or padding-free), so that each row stays one row"
)


class CarryingTasks:
    """A function for `map`: that of a script, for rows of which some have tasks."""

    def __init__(
        self, function: Callable[..., Any], tasks: ScriptTasks, *, batched: bool, inputs: Sequence[str], always: bool
    ) -> None:
        self.function, self.tasks, self.batched = function, tasks, batched
        self.inputs = list(inputs)
        """Columns that the function takes as its arguments; without any it takes the row."""
        self.always = always
        """Whether rows without tasks get the column too: a table must have it everywhere."""

    def __call__(self, rows: Any, *arguments: Any, **options: Any) -> Any:
        if not self.batched:
            row, turns = self._take(rows)
            return self._with_tasks(self._call(row, *arguments, **options), pack(turns))
        if not isinstance(rows, Mapping):
            return self._table(rows, *arguments, **options)
        columns = {name: rows[name] for name in rows}
        number = len(next(iter(columns.values()))) if columns else 0
        taken = [self._take({name: values[i] for name, values in columns.items()}) for i in range(number)]
        packed = [pack(turns) for _, turns in taken]
        if "input_ids" in columns or not any(packed):
            changed = any(turn.text for _, turns in taken for turn in turns)
            batch = {
                name: [row[name] for row, _ in taken] if changed else values
                for name, values in columns.items()
                if name not in TASKS
            }
            return self._together(batch, packed, *arguments, **options)
        return self._one_by_one([row for row, _ in taken], packed, *arguments, **options)

    def _take(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], list[Turn]]:
        return take_tasks(row, self.tasks.format, self.tasks.by_id, "a row of the dataset")

    def _call(self, row: Mapping[str, Any], *arguments: Any, **options: Any) -> Any:
        given = [row[name] for name in self.inputs] if self.inputs else [row]
        return self.function(*given, *arguments, **options)

    def _with_tasks(self, made: Any, packed: Any) -> Any:
        if made is None or not (packed or self.always):
            return made
        if not isinstance(made, Mapping):
            raise TPOError(
                f"{_name(self.function)} makes a {type(made).__name__} of rows with tasks; expected a dict, which can "
                "keep them"
            )
        return {**made, COLUMN: packed}

    def _together(self, batch: dict[str, Any], packed: list[str], *arguments: Any, **options: Any) -> Any:
        """Rows that are tokenised may be cut, each by itself, but not joined."""
        made = self._call(batch, *arguments, **options)
        if made is None or not (any(packed) or self.always):
            return made
        numbers = {len(values) for values in made.values()}
        if any(packed) and (numbers - {len(packed)} or not _same_rows(batch.get("input_ids"), made.get("input_ids"))):
            raise TPOError(PACKED.format(name=_name(self.function)))
        return self._with_tasks(made, packed if any(packed) else [""] * max(numbers, default=0))

    def _one_by_one(self, rows: list[dict[str, Any]], packed: list[str], *arguments: Any, **options: Any) -> Any:
        """Calls the function with batches of one row, so that it is known which it leaves out."""
        made: dict[str, list[Any]] = {}
        kept: list[str] = []
        for i, row in enumerate(rows):
            own = [[argument[i]] if isinstance(argument, (list, range)) else argument for argument in arguments]
            of_row = self._call({name: [value] for name, value in row.items()}, *own, **options)
            if of_row is None:
                return None
            number = max((len(values) for values in of_row.values()), default=0)
            if number > 1 and packed[i]:
                raise TPOError(
                    f"{_name(self.function)} makes {number} rows of one with tasks; expected one, or it is not known "
                    "which gets them"
                )
            for name, values in of_row.items():
                made.setdefault(name, []).extend(values)
            kept += [packed[i]] * number
        return self._with_tasks(made, kept)

    def _table(self, table: Any, *arguments: Any, **options: Any) -> Any:
        """For a function of Arrow tables: rows may be cut, and not joined."""
        if not hasattr(table, "column_names"):
            raise TPOError(f"{_name(self.function)} takes a {type(table).__name__} of rows with tasks; expected a dict")
        packed = table.column(COLUMN).to_pylist() if COLUMN in table.column_names else [""] * len(table)
        made = self.function(table, *arguments, **options)
        if not any(packed):
            return made
        before, after = (
            t.column("input_ids").to_pylist() if "input_ids" in t.column_names else None for t in (table, made)
        )
        if len(made) != len(table) or not _same_rows(before, after):
            raise TPOError(PACKED.format(name=_name(self.function)))
        return made if COLUMN in made.column_names else made.append_column(COLUMN, table.column(COLUMN))


def _same_rows(before: Sequence[Any] | None, after: Sequence[Any] | None) -> bool:
    """Whether each row's ids are those it had, or what is left of them after a cut at one end."""
    if before is None or after is None:
        return True
    pairs = [(list(a), list(b)) for a, b in zip(before, after, strict=True)]
    return all(b == a[: len(b)] or b == a[len(a) - len(b) :] for a, b in pairs)


def _name(function: Any) -> str:
    while not hasattr(function, "__qualname__"):
        inner = getattr(function, "func", getattr(function, "function", None))
        if inner is None:
            return type(function).__qualname__
        function = inner
    return function.__qualname__


# -- the methods that are changed --------------------------------------------------------------------------------------


def hook_datasets(module: ModuleType, settings: ScriptSettings) -> None:
    """Changes `Dataset` or `IterableDataset` of a module of the library, right after it was imported."""
    tasks = ScriptTasks.of(settings)
    for name in ("Dataset", "IterableDataset"):
        owner = vars(module).get(name)
        if owner is not None and owner.__module__ == module.__name__:
            owner.map = _map(owner.map, tasks, module.__name__)
            for method, drops in (("remove_columns", True), ("select_columns", False)):
                setattr(owner, method, _keeping(getattr(owner, method), drops, module.__name__))
            if hasattr(owner, "set_transform"):
                owner.set_transform = _set_transform(owner.set_transform, tasks)


def _map(original: Callable[..., Any], tasks: ScriptTasks, library: str) -> Callable[..., Any]:
    parameters = signature(original)

    @wraps(original)
    def map(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = parameters.bind(self, *args, **kwargs)
        options, function = given.arguments, given.arguments.get("function")
        if function is None or _called_by(library) or not _may_have_tasks(self, tasks):
            return original(self, *args, **kwargs)
        is_table = hasattr(self, "num_rows")
        if is_table:
            met[_name(function)] = count_tasks(self, tasks.by_id)
        inputs = options.pop("input_columns", None) or []
        options["function"] = CarryingTasks(
            function,
            tasks,
            batched=options.get("batched", False),
            inputs=[inputs] if isinstance(inputs, str) else inputs,
            always=is_table,
        )
        removed = options.get("remove_columns") or []
        removed = [removed] if isinstance(removed, str) else removed
        options["remove_columns"] = [name for name in removed if name != COLUMN] or None
        if options.get("features") is not None:
            library_of = sys.modules["datasets"]
            options["features"] = library_of.Features({**options["features"], COLUMN: library_of.Value("string")})
        if options.get("cache_file_name"):
            options["cache_file_name"] += ".tpo"
        return original(*given.args, **given.kwargs)

    return map


def _set_transform(original: Callable[..., Any], tasks: ScriptTasks) -> Callable[..., Any]:
    @wraps(original)
    def set_transform(self: Any, transform: Any, columns: Any = None, output_all_columns: bool = False) -> Any:
        if transform is not None and _may_have_tasks(self, tasks):
            met[_name(transform)] = count_tasks(self, tasks.by_id)
            transform = CarryingTasks(transform, tasks, batched=True, inputs=[], always=True)
            if columns is not None:
                columns = [*columns, *(name for name in (*TASKS, "id") if name in self.column_names)]
        return original(self, transform, columns, output_all_columns)

    return set_transform


def _keeping(original: Callable[..., Any], drops: bool, library: str) -> Callable[..., Any]:
    @wraps(original)
    def method(self: Any, column_names: Any, *args: Any, **kwargs: Any) -> Any:
        if not _called_by(library):
            names = [column_names] if isinstance(column_names, str) else list(column_names)
            there = [name for name in TASKS[::-1] if name in (self.column_names or ())][:1]
            column_names = (
                [n for n in names if n not in (*there, COLUMN)] if drops else [*dict.fromkeys([*names, *there])]
            )
        return original(self, column_names, *args, **kwargs)

    return method


def _called_by(library: str) -> bool:
    """Whether the library itself calls the method that asks, as `filter` does with `map`."""
    return sys._getframe(2).f_globals.get("__name__") == library


def _may_have_tasks(dataset: Any, tasks: ScriptTasks) -> bool:
    names = dataset.column_names
    return names is None or any(name in names for name in TASKS) or bool(tasks.data and "id" in names)


def count_tasks(dataset: Any, by_id: Mapping[str, Any]) -> int:
    """Number of rows of a table that have tasks."""
    for name in TASKS[::-1]:
        if name in dataset.column_names:
            return sum(bool(value) for value in dataset.with_format(None)[name])
    names = dataset.with_format(None)["id"] if by_id and "id" in dataset.column_names else []
    return sum(bool(by_id.get(str(name))) for name in names)
