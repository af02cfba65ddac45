"""What `tpo doctor` says of a run's free answers: those of each stage's last evaluation, and why no trigger came."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

_SHOWN = 3
"""Questions of one head that are printed."""


def free_answers(run: Path, heads: Sequence[str]) -> dict[str, Any]:
    """By stage of a finished run: "step", "metrics" (without prefix), "warnings", and "missed", answers that call no
    head that their record wants. Stages that asked nothing are left out.
    """
    from tpo_plugin.training.free import FILE, parted, rates, read
    from tpo_plugin.training.run import read_run

    found = {}
    for stage, logged in read_run(run)["stages"].items():
        answers = read(run / stage / FILE)
        if not answers:
            continue
        newest = answers[-1]
        last = [a for a in answers if (a.evaluation, a.step) == (newest.evaluation, newest.step)]
        prefix = f"{newest.evaluation}_"
        entries = [entry for entry in logged.get("log", ()) if entry.get("step") == newest.step]
        forced = {k.removeprefix(prefix): v for entry in entries for k, v in entry.items() if k.startswith(prefix)}
        metrics = forced | rates(last, heads)
        found[stage] = {
            "step": newest.step,
            "metrics": metrics,
            "warnings": parted(metrics, heads),
            "missed": [asdict(answer) for answer in last if answer.triggers],
        }
    return found


def lines(found: dict[str, Any], heads: Sequence[str]) -> Iterator[str]:
    """What `free_answers` found, as text."""
    for stage, of_stage in found.items():
        metrics, where = of_stage["metrics"], f"{stage}, step {of_stage['step']}"
        for name in heads:
            numbers = [
                f"{words} {metrics[key]:.0%}"
                for words, key in (
                    ("called where it is wanted", f"free_{name}_emission"),
                    ("where it is not", f"free_{name}_false_triggers"),
                    ("trigger right behind the records' own words", "assign_accuracy"),
                )
                if key in metrics
            ]
            yield f"{where}: {name}, of {metrics['free_questions']} free answers: {'; '.join(numbers)}"
        yield from (f"WARNING: {where}: {sentence}" for sentence in of_stage["warnings"])
        for name in heads:
            missed = [answer for answer in of_stage["missed"] if name in answer["triggers"]]
            for answer in missed[:_SHOWN]:
                trigger = answer["triggers"][name]
                yield (
                    f"  {name} did not come: {answer['question']!r} was answered {answer['answer']!r} "
                    f"({answer['record']}); its trigger's probability is {trigger['in_record']:.3g} behind the "
                    f"record's own words, and in this answer at most {trigger['in_answer']:.3g}, "
                    f"behind {trigger['behind']!r}"
                )
            if len(missed) > _SHOWN:
                yield f"  {name} did not come in {len(missed) - _SHOWN} more: --json has them"
