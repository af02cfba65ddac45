"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Confine = Annotated[
    bool,
    typer.Option(
        "--confine", help="For records of others: refuse those that name a file outside of their media folder."
    ),
]
