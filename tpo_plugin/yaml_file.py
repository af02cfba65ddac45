"""YAML files that people write, read with nothing passed over in silence. No torch in here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tpo_plugin.errors import TPOError


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file, plain ones only: what JSON can hold.

    Raises `TPOError` for a file that cannot be read or holds something else, and for a key that stands twice.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
        json.dumps(values)
    except RecursionError as error:
        raise TPOError(f"{path}: nests too deep to be read") from error
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise TPOError(f"{path}: not a readable YAML file: {error}") from error
    except (TypeError, ValueError) as error:  # a date, a set, an alias within its own anchor
        raise TPOError(f"{path}: holds more than plain values: {error}") from error
    if values is None:
        raise TPOError(f"{path}: is empty; expected keys and values")
    if not isinstance(values, dict):
        raise TPOError(f"{path}: holds a {type(values).__name__}; expected keys and values")
    return values


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which PyYAML would take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The base loader's node, before keys are merged into it (`<<`)."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node
