"""The part of docs/trainers.md that is made: the table, and for each trainer its command and what is to be known."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import yaml

from tests.trainers.cases import CASES, HERE, ROOT, Case, Run

RESULTS, PAGE = HERE / "results.json", ROOT / "docs" / "trainers.md"
HEADER = ("trainer", "version", "transformers", "tasks seen", "loss equal", "accumulation equal", "saved", "loaded")
BEGIN, END = "<!-- trainers: begin -->\n", "<!-- trainers: end -->\n"
SHOWN = Run(Path("DATA"), Path("OUT"), 4, 1, Path(), Path("tests/trainers/scripts"))
"""Names that stand for folders on the page."""


def results() -> dict[str, list[str]]:
    """Cells of the table by trainer, as they were seen last."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def write(new: dict[str, list[str]]) -> None:
    """Keeps results, and writes the page."""
    known = results() | new
    ordered = {case.name: known[case.name] for case in CASES if case.name in known}
    RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + made(ordered) + END + rest.split(END)[1])


def made(cells: dict[str, list[str]]) -> str:
    """What stands between the marks."""
    unseen = ["-", "-", "not run", *["-"] * (len(HEADER) - 4)]
    table = [HEADER, ["---"] * len(HEADER), *((case.name, *cells.get(case.name, unseen)) for case in CASES)]
    return "\n".join(f"| {' | '.join(row)} |" for row in table) + "\n\n" + "".join(map(_section, CASES))


def _section(case: Case) -> str:
    variables = " ".join(f"{name}={value}" for name, value in case.variables.items())
    command = shlex.join(["tpo", "run", "--heads", "region", "--", *map(str, case.command(SHOWN))])
    files = "".join(
        f"`{SHOWN.output}/{name}`:\n\n```yaml\n{yaml.safe_dump(content, sort_keys=False)}```\n\n"
        for name, content in case.files(SHOWN).items()
    )
    needs = f"Environment: [{case.env}.txt](../tests/envs/{case.env}.txt). " if case.env else ""
    shell = f"```bash\n{variables + ' ' if variables else ''}{command}\n```\n\n"
    return f"### {case.name}\n\n{needs}{case.how}\n\n{files}{shell}"
