"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tpo_plugin.errors import TPOError

Confine = Annotated[
    bool,
    typer.Option(
        "--confine", help="For records of others: refuse those that name a file outside of their media folder."
    ),
]

Host = Annotated[Path | None, typer.Option(help="Where the host lies now, if it has moved.")]


def head_names(heads: str) -> list[str]:
    """The names in an option --heads, blanks around them left out. Raises `TPOError` for none."""
    names = [name.strip() for name in heads.split(",") if name.strip()]
    if not names:
        raise TPOError(f"--heads {heads!r} names no head; expected for example --heads region,temporal")
    return names
