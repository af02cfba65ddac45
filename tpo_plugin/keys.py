"""The keys of a configuration with what each admits and means, from the dataclass that checks them. No torch in here.

What a key means is the docstring under its field; pages and the comments of `tpo init` say the same.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from tpo_plugin.validation import expected


@dataclass(frozen=True)
class Key:
    """One key of a configuration."""

    name: str
    admits: str
    """Its values in words, as messages about wrong ones have them: "a finite number above 0"."""
    default: Any
    """Its plain value where it is not given; `dataclasses.MISSING` where it must be."""
    about: str
    """What it means, in one paragraph, with null for None; empty where its field has no docstring."""
    below: type | None
    """The dataclass of which its value, or each of its values, has the keys."""


def keys_of(config: type) -> list[Key]:
    """The keys of a dataclass in the order of its fields, those that are read from files alone."""
    hints, about = typing.get_type_hints(config, include_extras=True), _docstrings(config)
    return [
        Key(
            field.name,
            expected(hints[field.name]),
            _default(field),
            about.get(field.name, ""),
            _dataclass_in(hints[field.name]),
        )
        for field in dataclasses.fields(config)
        if field.init
    ]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return _plain(field.default_factory())
    return _plain(field.default)


def _plain(value: Any) -> Any:
    """A value as a file has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return value


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that stands anywhere in an annotation."""
    kind = get_origin(hint) or hint
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind
    return next((found for part in get_args(hint) if (found := _dataclass_in(part)) is not None), None)


@functools.cache
def _docstrings(config: type) -> dict[str, str]:
    """The docstring under each field of a class and of its bases, its lines joined."""
    found: dict[str, str] = {}
    for base in reversed([kind for kind in config.__mro__ if dataclasses.is_dataclass(kind)]):
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, SyntaxError):  # made without a file, in a notebook say
            continue
        assert isinstance(tree, ast.ClassDef)
        for field, text in itertools.pairwise(tree.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                    found[name] = re.sub(r"(?<!`)\bNone\b", "null", " ".join(said.split()))
    return found
