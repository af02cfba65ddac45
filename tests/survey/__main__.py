"""`python -m tests.survey [NAME ...]`: the survey of architectures.

Each architecture is looked at in a process of its own group, with text, and with images and video where it takes them.
Results are kept in `results.json`, from which `python -m tests.pages` makes the table of docs/hosts.md; those that are
there are not run again.

Three architectures need `timm` (`pip install timm`); without it they are listed as not tried.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from .table import RESULTS, counts, verdict

MODES = ("text", "image", "video")
BATCH = 30
"""Architectures that one process looks at."""
SECONDS_EACH = 900
"""An architecture that takes longer is stopped."""


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--one"]:
        for name in arguments[1:]:
            print(json.dumps({name: look(name)}), flush=True)
        return
    from .build import architectures

    found = _known()
    _run(arguments or [name for name in architectures() if name not in found], found)
    _write({name: found[name] for name in architectures() if name in found})
    print(counts(_known()))


def _run(names: list[str], found: dict[str, Any]) -> None:
    """Processes of some architectures each; the one at which a process hangs or dies is recorded and skipped."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    while names:
        command = [sys.executable, "-W", "ignore", "-m", "tests.survey", "--one", *names[:BATCH]]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        deadline, done = time.monotonic() + SECONDS_EACH, 0
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
            while line := process.stdout.readline():
                if line.startswith('{"'):
                    _keep(found, json.loads(line))
                    done, deadline = done + 1, time.monotonic() + SECONDS_EACH
        process.kill()
        for line in process.stdout.readlines():
            if line.startswith('{"'):
                _keep(found, json.loads(line))
                done += 1
        if done < len(names[:BATCH]):
            _keep(found, {names[done]: {"text": {"host": f"stopped after {SECONDS_EACH} s, or its process died"}}})
            done += 1
        names = names[done:]


def _keep(found: dict[str, Any], result: dict[str, Any]) -> None:
    found |= _known() | result  # another survey may run beside this one
    _write(found)
    for name, modes in result.items():
        print(name, verdict(modes), flush=True)


def _known() -> dict[str, Any]:
    return json.loads(RESULTS.read_text())["architectures"] if RESULTS.is_file() else {}


def _write(found: dict[str, Any]) -> None:
    import transformers

    results = {"architectures": found, "transformers": transformers.__version__}
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def look(name: str) -> dict[str, Any]:
    """What an architecture does in each mode: {"checks": {check: what is wrong, ""}, "notes": [...]}."""
    import torch
    import transformers

    from tpo_plugin import HostError

    from .build import build
    from .check import Case, survey
    from .media import find_media, is_image_text

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    result: dict[str, Any] = {}
    try:
        model = build(name)
    except Exception as error:
        return {"text": {"host": f"not built: {_short(error)}"}}
    for mode in MODES if is_image_text(name) else MODES[:1]:
        media, case = None, None
        if mode != "text":
            media = find_media(model, mode)
            if isinstance(media, str):
                result[mode] = {"untried": media[:500]}
                continue
        try:
            case = Case(name, media)
            result[mode] = {"checks": survey(case)}
        except HostError as error:
            result[mode] = {"refused": str(error)}
        except Exception as error:
            result[mode] = {"host": _short(error)}
        if case is not None and case.notes:
            result[mode]["notes"] = case.notes
    return result


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


if __name__ == "__main__":
    main(sys.argv[1:])
