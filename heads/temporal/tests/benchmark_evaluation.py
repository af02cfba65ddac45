"""Seconds of QVHighlights' evaluation: ours, a plain implementation in this folder, and the public evaluator's.

    python heads/temporal/tests/benchmark_evaluation.py PREDICTIONS TRUTH [--rounds 3]

Ours is timed as the command that a user runs (a new process, with its imports and reading the files) and as the
evaluation alone, interleaved with the plain implementation in the same process. The public evaluator is not run: its
median for the sample predictions on the same kind of machine, 20.2 s of wall time and 19.8 s of CPU time with 8
processes on 2 cores, imports included, was measured apart.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from plain_metrics import evaluate as evaluate_plainly
from rich.console import Console
from rich.table import Table
from tpo_head_temporal.jsonlines import read_jsonl
from tpo_head_temporal.qvhighlights import evaluate

PUBLIC_CPU_S = 19.8


def cpu_of(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def cpu_of_command(predictions: Path, truth: Path) -> float:
    code = "from tpo_plugin.cli import main; main()"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", code, "evaluate-moments", str(predictions), str(truth)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("predictions", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    predictions, truth = ([row for _, row in read_jsonl(path)] for path in (options.predictions, options.truth))
    variants: dict[str, Callable[[], float]] = {
        "tpo evaluate-moments (process)": lambda: cpu_of_command(options.predictions, options.truth),
        "evaluation alone": lambda: cpu_of(lambda: evaluate(predictions, truth)),
        "plain implementation alone": lambda: cpu_of(lambda: evaluate_plainly(predictions, truth)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, run in variants.items():
            seconds[name].append(run())
    command, alone, plain = (statistics.median(values) for values in seconds.values())
    table = Table("what", "CPU s (median)", "min to max", title=f"{len(predictions)} queries, {options.rounds} rounds")
    for name, values in seconds.items():
        table.add_row(name, f"{statistics.median(values):.3f}", f"{min(values):.3f} to {max(values):.3f}")
    table.add_row("public evaluator (measured apart)", f"{PUBLIC_CPU_S}", "")
    console = Console(width=100)
    console.print(table)
    console.print(f"public evaluator / command: {PUBLIC_CPU_S / command:.1f} times as long, both with their imports")
    console.print(f"plain / ours, evaluation alone: {plain / alone:.1f} times as long")


if __name__ == "__main__":
    main()
