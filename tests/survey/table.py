"""What the survey saw, as the table of docs/hosts.md: from `results.json` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")

WORDS = {
    "works": "works",
    "note": "works, with a note",
    "refused": "refused",
    "fails": "fails",
    "no host": "not tried",
}
COUNTED = {
    "works": "work",
    "note": "work with a note",
    "refused": "are refused",
    "fails": "fail",
    "no host": "could not be tried",
}


def table() -> str:
    """The counts, and a row for each architecture."""
    results = json.loads(RESULTS.read_text())
    found = results["architectures"]
    number = counts(found)
    said = ", ".join(f"{number[kind]} {word}" for kind, word in COUNTED.items() if number[kind])
    lines = [
        f"{len(found)} architectures of transformers {results['transformers']}: {said}.",
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
    return "\n".join([*lines, ""])


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
