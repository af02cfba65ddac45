"""`python -m tests.trainers [WORD ...]`: trains with every trainer whose environment exists; the page's table.

Only those whose name has one of the words in it are run, where there are words. TPO_ENVS is the folder of the
environments; they are made from the lists in tests/envs, as docs/trainers.md says.
`--keep FOLDER` keeps what they write.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from tests.trainers.cases import CASES, Case
from tests.trainers.runs import run_case

HEADER = ("trainer", "version", "tasks seen", "loss equal", "accumulation equal", "saved", "loaded")


def main(arguments: list[str]) -> int:
    """Prints the table; the exit status is 1 where something was not seen."""
    keep = Path(arguments.pop(arguments.index("--keep") + 1)) if "--keep" in arguments else None
    words = [word for word in arguments if word != "--keep"]
    chosen = [case for case in CASES if not words or any(word.lower() in case.name.lower() for word in words)]
    rows, failed = [], False
    with tempfile.TemporaryDirectory(prefix="tpo-trainers-") as temporary:
        for number, case in enumerate(chosen):
            cells, good = _cells(case, (keep or Path(temporary)) / f"{number}-{case.env or 'project'}")
            rows.append((case.name, *cells))
            failed |= not good
    print("\n".join(f"| {' | '.join(row)} |" for row in (HEADER, ["---"] * len(HEADER), *rows)))
    return int(failed)


def _cells(case: Case, folder: Path) -> tuple[list[str], bool]:
    if not (case.bin / "python").exists():
        return ["-", f"no environment {case.bin.parent}", *[""] * 4], True
    began = time.monotonic()
    try:
        result = run_case(case, folder)
    except RuntimeError as error:
        print(f"{case.name}: {error}", file=sys.stderr)
        return ["-", "FAILED", *[""] * 4], False
    print(f"{case.name}: {time.monotonic() - began:.0f} s", json.dumps(result.numbers, indent=1), file=sys.stderr)
    return result.cells(), "NO" not in result.cells()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
