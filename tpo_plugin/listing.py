"""What is installed, from where, and what failed: as values and as text. No torch in here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tpo_plugin.plugins import Registry


def describe(found: Registry) -> dict[str, Any]:
    """The registry as plain values: heads (every claim of a name), patches, and plugins with their errors."""

    def origin(spec: Any) -> dict[str, Any]:
        return {"plugin": spec.plugin.name, "distribution": spec.plugin.distribution, "version": spec.plugin.version}

    heads = [
        {
            "name": spec.name,
            "trigger": spec.trigger,
            "task_token": spec.task_token,
            "input_token": spec.input_token,
            **origin(spec),
            "clash": len(claims) > 1,
        }
        for _, claims in sorted(found.claims.items())
        for spec in claims
    ]
    patches = [{"name": spec.name, **origin(spec)} for _, spec in sorted(found.patches.items())]
    plugins = [
        {"name": p.name, "distribution": p.distribution, "version": p.version, "error": p.error} for p in found.plugins
    ]
    return {"heads": heads, "patches": patches, "plugins": plugins}


def as_text(found: Registry) -> str:
    """A table of the heads, then patches, then what is not in use and why."""
    listed = describe(found)
    rows = [("head", "trigger", "task token", "input token", "from")]
    for head in listed["heads"]:
        source = f"{head['distribution']} {head['version']}".strip() + (" (CLASH)" if head["clash"] else "")
        rows.append((head["name"], head["trigger"], head["task_token"], head["input_token"] or "-", source))
    lines = _columns(rows) if listed["heads"] else ["No head is installed. For example: pip install tpo-head-region"]
    lines += [f"patch {patch['name']}: {patch['distribution']} {patch['version']}" for patch in listed["patches"]]
    for plugin in found.plugins:
        if plugin.error is not None:
            lines += ["", f"not in use: {plugin.name} ({plugin})", plugin.error.rstrip()]
    return "\n".join(lines)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
