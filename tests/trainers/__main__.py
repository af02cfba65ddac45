"""`python -m tests.trainers [WORD ...]`: trains with each trainer that is there, and writes docs/trainers.md.

Only those whose name has one of the words in it are run, where there are words; results of the others stay as they were
seen last. TPO_ENVS is the folder of the environments. `--keep FOLDER` keeps what the trainers write.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from tests.trainers import page
from tests.trainers.cases import CASES
from tests.trainers.runs import run_case


def main(arguments: list[str]) -> int:
    """Prints what was seen; the exit status is 1 where something was not."""
    keep = Path(arguments.pop(arguments.index("--keep") + 1)) if "--keep" in arguments else None
    words = [word.lower() for word in arguments if word != "--keep"]
    chosen = [case for case in CASES if not words or any(word in case.name.lower() for word in words)]
    cells: dict[str, list[str]] = {}
    failed = False
    with tempfile.TemporaryDirectory(prefix="tpo-trainers-") as temporary:
        for case in chosen:
            missing = [path for path in (case.bin / "python", case.folder) if not path.exists()]
            if missing:
                print(f"{case.name}: not run, there is no {missing[0]}")
                continue
            began = time.monotonic()
            try:
                cells[case.name], numbers = run_case(case, (keep or Path(temporary)) / str(CASES.index(case)))
            except RuntimeError as error:
                print(f"{case.name}: {error}")
                failed = True
                continue
            failed |= any(cell.startswith("NO") for cell in cells[case.name])
            print(f"{case.name}: {cells[case.name]} in {time.monotonic() - began:.0f} s")
            print(json.dumps(numbers), file=sys.stderr)
    page.write(cells)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
