"""Values that people write, checked against the annotations of a dataclass by pydantic. No torch in here.

Every wrong field is named, with its whole path. Nothing is converted but a number that YAML 1.1 takes for text (1e-2).
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import annotated_types as at

from tpo_plugin.errors import TPOError, did_you_mean, shown

ClassT = TypeVar("ClassT")
Path = tuple[str | int, ...]

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
"""A number that YAML 1.1 takes for text."""

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "keys and values",
    types.NoneType: "null",
    Any: "a value",
}


class WrongValues(TPOError):
    """What is wrong with the values of a dataclass: for each mistake the path to it and what to say about it."""

    def __init__(self, mistakes: Iterable[tuple[Path, str]]) -> None:
        self.mistakes = list(dict.fromkeys(mistakes))
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One line for each mistake, with its key path."""
        return [f"{path_text(path)}: {text}" if path else text for path, text in self.mistakes]

    def below(self, *steps: str | int) -> WrongValues:
        """The same mistakes of values that stand at this path."""
        return WrongValues(((*steps, *path), text) for path, text in self.mistakes)

    def at(self, where: str) -> TPOError:
        """The error for users, with the place before each line."""
        return TPOError("\n".join(f"{where}: {line}" for line in self.lines()))


def build(cls: type[ClassT], values: Any) -> ClassT:
    """An object of dataclass `cls` from plain values. Raises `WrongValues`, with all that is wrong."""
    if not isinstance(values, Mapping):
        raise WrongValues([((), f"is {shown(values)}; expected keys and values")])
    checked = check(cls, values)
    try:
        return cls(**checked)
    except ValueError as error:  # a relation between fields, in __post_init__
        raise WrongValues([((), str(error))]) from error


def check(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the annotations of dataclass `cls` have them: nested ones as objects, text such as 1e-2 as number.

    Raises `WrongValues`, with all that is wrong.
    """
    from pydantic import ValidationError

    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints, adapters = _annotations(cls)
    checked: dict[str, Any] = {}
    mistakes: list[tuple[Path, str]] = [
        ((), f"unknown key {shown(key)}{did_you_mean(key if isinstance(key, str) else shown(key), fields)}")
        for key in values
        if key not in fields
    ]
    for name, field in fields.items():
        if name in values:
            try:
                checked[name] = adapters[name].validate_python(values[name])
            except ValidationError as error:
                mistakes += _mistakes(error, name, values[name], hints[name])
        elif field.default is field.default_factory is dataclasses.MISSING:
            mistakes.append(((name,), f"is missing; expected {expected(hints[name])}"))
    if mistakes:
        raise WrongValues(mistakes)
    return checked


def expected(hint: Any) -> str:
    """What an annotation admits, in words."""
    if get_origin(hint) is typing.Annotated:
        kind, *notes = get_args(hint)
        notes = [one for note in notes for one in (note if isinstance(note, at.GroupedMetadata) else [note])]
        said = [note.documentation for note in notes if isinstance(note, at.DocInfo)]
        bounds = " and ".join(filter(None, map(_bound, notes)))
        return said[0] if said else f"{expected(kind)} {bounds}".rstrip()
    if get_origin(hint) is Literal:
        return _either(map(repr, get_args(hint)))
    if _is_union(hint):
        return _either(map(expected, get_args(hint)))
    kind = get_origin(hint) or hint
    if dataclasses.is_dataclass(kind):
        return _WORDS[dict]
    return str(_WORDS.get(kind) or getattr(kind, "__name__", kind))


def path_text(path: Path) -> str:
    """As one writes it: `stages.stage2.data[0].weight`."""
    text = ""
    for step in path:
        if isinstance(step, str) and re.fullmatch(r"[\w-]+", step):
            text += f".{step}"
        else:
            text += f"[{step!r}]"
    return text.removeprefix(".")


# -- annotations -------------------------------------------------------------------------------------------------------


@functools.cache
def _annotations(cls: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The annotation of each field, and pydantic's adapter for it."""
    from pydantic import ConfigDict, TypeAdapter

    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise TPOError(
            f"{cls.__name__} has an annotation that cannot be read ({error}); import its name when the module runs"
        ) from error
    config = ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    return hints, {name: TypeAdapter(_strict(hints[name]), config=config) for name in names}


def _strict(hint: Any) -> Any:
    """The annotation for a check that converts no scalar: true is no number, 1 no text. A list may become a tuple."""
    from pydantic import BeforeValidator, PlainValidator, Strict

    if get_origin(hint) is typing.Annotated:
        kind, *notes = get_args(hint)
        return typing.Annotated[(_strict(kind), *notes)]
    if hint in (bool, int, str):
        return typing.Annotated[hint, Strict()]
    if hint is float:
        return typing.Annotated[float, Strict(), BeforeValidator(_number)]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return typing.Annotated[Any, PlainValidator(functools.partial(_nested, hint))]
    if _is_union(hint):
        return functools.reduce(operator.or_, map(_strict, get_args(hint)))
    if get_origin(hint) in (list, dict, tuple, set):
        return get_origin(hint)[tuple(map(_strict, get_args(hint)))]
    return hint


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _nested(cls: type, value: Any) -> Any:
    from pydantic_core import PydanticCustomError

    if isinstance(value, cls):
        return value
    if isinstance(value, Mapping):
        return build(cls, value)
    raise PydanticCustomError("no_mapping", "keys and values")


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


# -- messages ----------------------------------------------------------------------------------------------------------


def _mistakes(error: Any, name: str, value: Any, hint: Any) -> Iterable[tuple[Path, str]]:
    """A field's mistakes out of pydantic's `ValidationError`."""
    for found in error.errors(include_url=False):
        of_key = found["loc"][-1:] == ("[key]",)
        path = _path(value, found["loc"][:-2] if of_key else found["loc"])
        cause = found.get("ctx", {}).get("error")
        if isinstance(cause, WrongValues):
            yield from (((name, *path, *deeper), text) for deeper, text in cause.mistakes)
        elif cause is not None:
            yield (name, *path), str(cause)
        elif of_key:
            keys = get_args(_kinds(_at(hint, path))[0])[0]
            yield (name, *path), f"has the key {shown(found['input'])}; expected {expected(keys)}"
        else:
            yield (name, *path), f"is {shown(found['input'])}; expected {expected(_at(hint, path))}"


def _path(value: Any, loc: Path) -> Path:
    """The steps of pydantic's location that lead into the value; the others name members of a union."""
    path: Path = ()
    for step in loc:
        if step in (value if isinstance(value, Mapping) else range(len(value)) if isinstance(value, list) else ()):
            path, value = (*path, step), value[step]
    return path


def _at(hint: Any, path: Path) -> Any:
    """The annotation of what stands at a path into lists and mappings."""
    for _ in path:
        hint = next((get_args(kind)[-1] for kind in _kinds(hint) if len(get_args(kind)) > 0), Any)
    return hint


def _kinds(hint: Any) -> list[Any]:
    """What an annotation is without its notes: the members of a union, or one."""
    if get_origin(hint) is typing.Annotated:
        return _kinds(get_args(hint)[0])
    return [kind for member in get_args(hint) for kind in _kinds(member)] if _is_union(hint) else [hint]


def _bound(note: Any) -> str:
    words = {at.Gt: "above {}", at.Ge: "of at least {}", at.Lt: "below {}", at.Le: "at most {}"}
    for kind, text in words.items():
        if isinstance(note, kind):
            return text.format(getattr(note, kind.__name__.lower()))
    if isinstance(note, at.MultipleOf):
        return f"divisible by {note.multiple_of}"
    if isinstance(note, at.MinLen):
        return "that is not empty" if note.min_length == 1 else f"of length {note.min_length} or more"
    return ""


def _either(choices: Iterable[str]) -> str:
    *most, last = dict.fromkeys(choices)
    return f"{', '.join(most)} or {last}" if most else last
