"""`python -m tests.survey [NAME ...]`: the survey of architectures, and the tables that it writes.

Each architecture is looked at in a process of its own group, with text, and with images and video where it takes them.
Results are kept in `results.json`, from which the README's table is made; those that are there are not run again.

Three architectures need `timm` (`pip install timm`); without it they are listed as not tried.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS, README = FOLDER / "results.json", FOLDER.parents[1] / "README.md"
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

    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if arguments != ["--table"]:
        missing = [n for n in architectures() if n not in found]
        _run(arguments or missing, found)
    known = {name: found[name] for name in architectures() if name in found}
    write_readme(known)
    print(counts(known))


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
    if RESULTS.is_file():  # another survey may run beside this one
        found |= json.loads(RESULTS.read_text())
    found |= result
    RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    for name, modes in result.items():
        print(name, verdict(modes), flush=True)


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


def verdict(modes: dict[str, Any]) -> tuple[str, str]:
    """("works" | "note" | "refused" | "fails" | "no host", why) of an architecture."""
    notes, tried = [], 0
    for mode, result in modes.items():
        wrong = {check: reason for check, reason in result.get("checks", {}).items() if reason}
        if "checks" in result:
            tried += not wrong
        refusals = [
            r
            for r in (result.get("refused"), *wrong.values())
            if r and (r.startswith("refused") or "refused" in result)
        ]
        if wrong and len(refusals) < len(wrong):
            return "fails", f"{mode}: " + "; ".join(f"{check}: {reason}" for check, reason in wrong.items())
        if wrong or "refused" in result:
            notes.append(("refused", f"{mode}: {'; '.join(refusals)}"))
        elif "host" in result and mode == "text":
            notes.append(("no host", f"the bare host with text alone: {result['host']}"))
        elif "host" in result:
            notes.append(("note", f"{mode}: the bare host: {result['host']}"))
        notes += [("note", f"{mode}: {note}") for note in result.get("notes", ())]
    if not tried:
        kind = "refused" if any(k == "refused" for k, _ in notes) else "no host"
        return kind, "; ".join(why for _, why in notes)
    return ("note" if notes else "works"), "; ".join(why for _, why in notes)


def counts(found: dict[str, Any]) -> dict[str, int]:
    kinds = [verdict(modes)[0] for modes in found.values()]
    return {kind: kinds.count(kind) for kind in ("works", "note", "refused", "fails", "no host")}


def write_readme(found: dict[str, Any]) -> None:
    """Puts the table between the README's markers."""
    begin, end = "<!-- survey: begin -->", "<!-- survey: end -->"
    text = README.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        print(f"{README.name} has no markers {begin} … {end}: no table written")
        return
    before, rest = text.split(begin, 1)
    README.write_text(before + begin + "\n" + table(found) + end + rest.split(end, 1)[1], encoding="utf-8")


WORDS = {
    "works": "works",
    "note": "works, with a note",
    "refused": "refused",
    "fails": "fails",
    "no host": "not tried",
}


def table(found: dict[str, Any]) -> str:
    import transformers

    number = counts(found)
    said = ", ".join(f"{number[kind]} {word}" for kind, word in WORDS.items() if number[kind])
    lines = [
        f"<details><summary>{len(found)} architectures of transformers {transformers.__version__}: {said}</summary>",
        "",
        "| architecture | with | result |",
        "|---|---|---|",
    ]
    for name, modes in sorted(found.items()):
        kind, why = verdict(modes)
        tried = [m for m, r in modes.items() if "checks" in r]
        why = why.replace("|", "\\|").replace("\n", " ")
        why = f": {why[:400]}" if why else ""
        lines.append(f"| {name} | {', '.join(tried)} | {WORDS[kind]}{why} |")
    return "\n".join([*lines, "", "</details>", ""])


if __name__ == "__main__":
    main(sys.argv[1:])
