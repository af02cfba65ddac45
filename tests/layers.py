"""Draws docs/layers.svg, the layers of the core with every import between them: `python -m tests.layers`.

The layers are those of the contract in pyproject.toml, the imports those of the files.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "layers.svg"
PACKAGE = "tpo_plugin"
STEP, MARGIN, CHARACTER = 24, 96, 7.3
"""Distance of two modules, room for the longest name, and the width of a letter, in pixels."""


def layers() -> list[list[str]]:
    """The modules of each layer, without the package's name, the highest layer first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = (c for c in settings["contracts"] if c["type"] == "layers")
    return [[name.strip().removeprefix(f"{PACKAGE}.") for name in row.split("|")] for row in contract["layers"]]


def imports(modules: list[str]) -> set[tuple[str, str]]:
    """(importing, imported) of two different modules of the layers; imports for type checkers do not count."""
    found = set()
    for file in (ROOT / PACKAGE).rglob("*.py"):
        importing = _owner(".".join(file.relative_to(ROOT).with_suffix("").parts), modules)
        if importing is not None:
            imported = {_owner(name, modules) for name in _names(ast.parse(file.read_text()))}
            found |= {(importing, name) for name in imported if name not in (None, importing)}
    return {(a, b) for a, b in found if b is not None}


def _names(node: ast.AST) -> Iterator[str]:
    """What is imported below the node: modules, and for `from a import b` also `a.b`, which may be one."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
        for child in ast.iter_child_nodes(node):
            yield from _names(child)


def _owner(name: str, modules: list[str]) -> str | None:
    """The module of the layers that a dotted name is in."""
    inside = (module for module in modules if f"{name}.".startswith(f"{PACKAGE}.{module}."))
    return max(inside, key=len, default=None)


def picture() -> str:
    """The SVG: names on a diagonal; a dot right of the importing and above the imported one is an import."""
    rows = layers()
    modules = [module for row in rows for module in row]
    place = {module: index for index, module in enumerate(modules)}
    found = sorted(imports(modules), key=lambda pair: (place[pair[0]], place[pair[1]]))
    height = STEP * (len(modules) + 1)
    width = MARGIN + height
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="monospace" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, row in enumerate(rows):
        top, bottom = (STEP * (place[row[end]] + side) for end, side in ((0, 0.5), (-1, 1.5)))
        shade = ("#eef2f7", "#f8fafc")[number % 2]
        svg.append(f'<rect y="{top:g}" width="{width}" height="{bottom - top:g}" fill="{shade}"/>')
    for start, end in found:
        x, y, color = _x(place[end]), _y(place[start]), "#475569" if place[end] > place[start] else "#dc2626"
        svg.append(
            f'<path d="M{_x(place[start])} {y}H{x}V{_y(place[end])}" fill="none" stroke="{color}" opacity=".3"/>'
        )
        svg.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{color}"/>')
    for module, index in place.items():
        wide, right = CHARACTER * len(module) + 12, _x(index) + 8
        svg.append(
            f'<rect x="{right - wide:g}" y="{_y(index) - 9}" width="{wide:g}" height="18" rx="3" fill="white" '
            'stroke="#475569"/>'
        )
        svg.append(f'<text x="{right - wide / 2:g}" y="{_y(index) + 4}" text-anchor="middle">{module}</text>')
    return "\n".join([*svg, "</svg>", ""])


def _x(index: int) -> int:
    return MARGIN + STEP * index


def _y(index: int) -> int:
    return STEP * (index + 1)


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture())
