"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Confine = Annotated[
    bool,
    typer.Option(
        "--confine", help="For records of others: refuse those that name a file outside of their media folder."
    ),
]

Host = Annotated[Path | None, typer.Option(help="Where the host lies now, if it has moved.")]
