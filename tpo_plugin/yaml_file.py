"""YAML files that people write, read with nothing passed over in silence. No torch in here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tpo_plugin.errors import TPOError

DEEPEST = 100
"""Levels of a file."""

MOST_VALUES = 1_000_000
"""A file may hold so many values, those that an alias repeats counted each time."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file, plain ones only: what JSON can hold.

    Raises `TPOError` for a file that cannot be read or holds something else, for a key that stands twice, and for
    aliases that grow to more than a million values.
    """
    try:
        loader = _Loader(Path(path).read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        _count(node, {})
        values = None if node is None else loader.construct_document(node)
        text = json.dumps(values, ensure_ascii=False)
        text.encode("utf-8")  # refuses half of a pair of surrogates
        if "\\u0000" in text:
            raise ValueError("a text holds the character 0")
    except RecursionError as error:
        raise TPOError(f"{path}: nests too deep to be read") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TPOError(f"{path}: not a readable YAML file: {error}") from error
    except Exception as error:  # a date, a set, an alias within its own anchor; and !!int '' is an IndexError of PyYAML
        raise TPOError(f"{path}: holds more than plain values: {str(error) or type(error).__name__}") from error
    if values is None:
        raise TPOError(f"{path}: is empty; expected keys and values")
    if not isinstance(values, dict):
        raise TPOError(f"{path}: holds a {type(values).__name__}; expected keys and values")
    return values


def _count(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Values of a node with what its aliases repeat. Raises where there are too many, or a node holds itself."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.MarkedYAMLError(problem="an alias stands within its own anchor", problem_mark=node.start_mark)
        return known[id(node)]
    known[id(node)] = 0
    inner = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
    known[id(node)] = 1 + sum(_count(part, known) for part in inner)
    if known[id(node)] > MOST_VALUES:
        problem = f"its aliases repeat it to more than {MOST_VALUES} values"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return known[id(node)]


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which PyYAML would take the last, and what nests deeper than anybody writes,
    for which it would take long."""

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """Where "[" or "{" begins."""
        super().fetch_flow_collection_start(token)
        self._check_depth()

    def add_indent(self, column: int) -> bool:
        """Where a line stands further to the right."""
        self._check_depth()
        return super().add_indent(column)

    def _check_depth(self) -> None:
        if self.flow_level + len(self.indents) > DEEPEST:
            problem = f"it nests deeper than {DEEPEST} levels"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.get_mark())

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The base loader's node, before keys are merged into it (`<<`)."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):  # no key that JSON has, which the file is checked for
                continue
            if (key.tag, str(key.value)) in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node
