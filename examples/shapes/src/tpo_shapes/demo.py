"""`tpo demo`: data, the stages, the same training with boxes as words and an MLP for moments, heads on a frozen
host, and the results.

DIRECTORY                 a run of `tpo train`, as `tpo predict` takes it
DIRECTORY/baseline        the baseline's run
DIRECTORY/frozen          the run of heads on a frozen host
DIRECTORY/data            train-0, train-1 and heldout
DIRECTORY/*.log           what the processes wrote
DIRECTORY/*.seconds       how long they took, over all calls
DIRECTORY/report.html, results.json
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tpo_plugin.errors import TPOError
from tpo_plugin.processes import end_with_parent
from tpo_plugin.training.folder import held
from tpo_shapes.baselines import bare_record, baseline_record, best_constant_box, best_constant_span
from tpo_shapes.confidence import score_confidence
from tpo_shapes.dataset import make_dataset, write_records
from tpo_shapes.evaluate import (
    Answer,
    answer_questions,
    load_answers,
    read_questions,
    save_answers,
    score,
)
from tpo_shapes.micro_sam import WEIGHTS
from tpo_shapes.outlines import compare_masks, load_compared, score_masks
from tpo_shapes.recipe import (
    FILES,
    HEADS,
    LOGGING_STEPS,
    QUICK,
    SHARDS,
    Size,
    records_file,
    run_directory,
    sam_file,
    train_config,
)
from tpo_shapes.report import BASELINE, CONSTANT, FROZEN, HOST, TPO, confidence_table, mask_table, table, write_report
from tpo_shapes.stopwatch import Stopwatch

LOCK_FILE = "demo.lock"
HOST_DIRECTORY = Path(__file__).parent / "weights"


def run_demo(directory: Path, size: Size, seed: int = 0, host: Path = HOST_DIRECTORY) -> dict[str, Any]:
    """Runs the whole demo and returns what stands in results.json.

    Raises `TPOError` where the host is not there, where the folder has a run of other settings or cannot be written,
    and where another call runs the demo in it.
    """
    if not (host / "config.json").is_file():
        raise TPOError(f"no host in {host}; expected the folder of a model, with its config.json")
    with held(directory, LOCK_FILE):
        return _run(directory, size, seed, host)


def _run(directory: Path, size: Size, seed: int, host: Path) -> dict[str, Any]:
    console = Console()
    settings = {"seed": seed, "size": json.loads(json.dumps(dataclasses.asdict(size)))}
    _open(directory, settings)
    quick = size == QUICK
    if quick:
        console.print("[bold]--quick shows the path, not the quality: its numbers mean nothing[/bold]")
    with Stopwatch(directory / "all.seconds", time.monotonic) as clock:
        cpu = _run_jobs(directory, size, seed, host, console)
    questions = read_questions(heldout_files(directory))
    answers = {name: load_answers(answers_file(directory, name)) for name in FILES}
    answers[CONSTANT] = constant_answers(directory)
    results = {
        **settings,
        "quick": quick,
        "rows": {name: score(questions, answers[name]) for name in (TPO, FROZEN, BASELINE, CONSTANT, HOST)},
        "masks": score_masks(
            questions,
            {name: answers[name] for name in (TPO, FROZEN)} | load_compared(tracks_file(directory), questions),
        ),
        "confidence": score_confidence(questions, answers[TPO]),
        "seconds": {"wall": clock.seconds, "calls": clock.calls, "cpu": cpu},
        "versions": {name: version(name) for name in ("tpo-plugin", "torch", "transformers", "peft")},
    }
    (directory / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    write_report(directory, results, questions, answers)
    console.print(table(results))
    console.print(mask_table(results))
    console.print(confidence_table(results))
    if quick:
        console.print("[bold]--quick shows the path, not the quality[/bold]; for the quality leave it out")
    picture = next(q for q in questions if q.box is not None and not q.clip)
    ask = f'tpo predict {directory} --image {picture.media} --prompt "{picture.text}" --output answer.png'
    console.print(f"report: {directory / 'report.html'}\nask it: {ask}", soft_wrap=True, highlight=False)
    return results


def _run_jobs(directory: Path, size: Size, seed: int, host: Path, console: Console) -> dict[str, dict[str, float]]:
    """Data, training, answers, in two processes of one thread each: CPU seconds of each job."""
    shutil.copyfile(WEIGHTS, sam_file(directory))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, initializer=start_worker) as pool, _progress(console) as progress:

        def start(log: str, job: Callable[..., Any], *arguments: Any) -> Future:
            return pool.submit(_work, _log(directory, log), job, *arguments)

        data = [start(name, _make_part, directory / "data" / name, size, seed) for name in (*SHARDS, "heldout")]
        _wait(progress, {"data": (data, lambda: sum(job.done() for job in data), len(data))})
        answers = {HOST: start(HOST, _answer, directory, HOST, host)}
        runs = {name: start(name, _train, host, directory, size, seed, name) for name in HEADS}
        steps = {name: partial(_steps, _log(directory, name)) for name in HEADS}
        _wait(
            progress,
            {name: ([run], steps[name], sum(size.steps) // (2 if name == FROZEN else 1)) for name, run in runs.items()},
        )
        answers |= {name: start(name, _answer, directory, name, host) for name in HEADS}
        tracks = start("tracks", _compare, directory)
        asked = [*answers.values(), tracks]
        _wait(progress, {"answers": (asked, lambda: sum(job.done() for job in asked), len(asked))})
    seconds = {name: {"answers": job.result()} for name, job in answers.items()}
    for name, run in runs.items():
        seconds[name]["training"] = run.result()
    seconds[TPO]["tracks"] = tracks.result()
    return seconds


def answers_file(directory: Path, name: str) -> Path:
    """What a model answered."""
    return directory / f"answers_{FILES[name]}.jsonl"


def tracks_file(directory: Path) -> Path:
    """Where the masks are that the answers' are compared with."""
    return directory / "tracks.json"


def heldout_files(directory: Path) -> list[Path]:
    """The records that evaluation asks about."""
    return [directory / "data" / "heldout" / f"{p}{kind}.jsonl" for p in ("", "clip_") for kind in ("chat", "tasks")]


def constant_answers(directory: Path) -> list[Answer]:
    """The box that is right most often in training, one for pictures and one for clips; and the moment."""
    import numpy as np

    files = [directory / "data" / shard for shard in SHARDS]
    best = {}
    for clip, prefix in enumerate(("", "clip_")):
        asked = read_questions(root / f"{prefix}tasks.jsonl" for root in files)
        boxes = np.array([q.box for q in asked if q.box is not None][:2000])
        best[bool(clip)] = best_constant_box(boxes).tolist()
    span_s = best_constant_span([q.spans_s for q in asked if q.spans_s][:2000])
    return [
        Answer("", [best[q.clip]] if q.wanted == "box" else [], [span_s] if q.wanted == "moment" else [])
        for q in read_questions(heldout_files(directory))
    ]


# -- jobs of the worker processes --------------------------------------------------------------------------------------


def start_worker() -> None:
    """In a process that works for another: it has one thread, and ends where the other does, however that ends."""
    import torch

    torch.set_num_threads(1)
    end_with_parent()


def _work(log: Path, job: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a job with all that it prints in a file."""
    with log.open("a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    try:
        return job(*arguments)
    except Exception as error:
        traceback.print_exc()
        raise TPOError(f"{type(error).__name__}: {error} (all of it: {log})") from None
    finally:
        sys.stdout.flush()


def _make_part(root: Path, size: Size, seed: int) -> None:
    """One training shard or the held-out scenes, with the tasks as each model takes them."""
    if (root / "done").is_file():
        return
    if root.name in SHARDS:
        share, index = len(SHARDS), SHARDS.index(root.name)
        counts = (size.num_scenes // share, size.num_clips // share)
        files = make_dataset(root, "train", counts[0], 1000 * seed + 10 * index, counts[1])
    else:
        files = make_dataset(root, "heldout", size.heldout_scenes, 1000 * seed + 500, size.heldout_clips)
    for key, file in files.items():
        if key.endswith("tasks"):
            records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            for name, change in ((BASELINE, baseline_record), (FROZEN, bare_record)):
                write_records(root / records_file(key, name), filter(None, map(change, records)))
    (root / "done").touch()


def _train(host: Path, directory: Path, size: Size, seed: int, name: str) -> float:
    from tpo_plugin.training.run import train
    from tpo_shapes.moment_mlp import registered

    seconds = directory / f"{FILES[name]}.training.seconds"
    with Stopwatch(seconds, time.process_time) as clock, registered(name == BASELINE):
        train(train_config(host, directory, size, seed, name))
    return clock.seconds


def _answer(directory: Path, name: str, host: Path) -> float:
    """Asks a model all questions, unless an earlier call did."""
    from tpo_shapes.moment_mlp import registered

    path, seconds = answers_file(directory, name), directory / f"{FILES[name]}.answers.seconds"
    with Stopwatch(seconds, time.process_time) as clock, registered(name == BASELINE):
        if not path.is_file():
            questions = read_questions(heldout_files(directory))
            as_text = name in (BASELINE, HOST)
            save_answers(path, answer_questions(_load(directory, name, host), questions, as_text=as_text))
    return clock.seconds


def _compare(directory: Path) -> float:
    """Follows the objects with the masks that the answers' are compared with."""
    from tpo_plugin.training.run import load_run

    with Stopwatch(directory / "tracks.seconds", time.process_time) as clock:
        if not tracks_file(directory).is_file():
            compare_masks(load_run(directory), read_questions(heldout_files(directory)), tracks_file(directory))
    return clock.seconds


def _load(directory: Path, name: str, host: Path) -> Any:
    """A trained model, or the host with heads applied and nothing trained, which answers as the host does."""
    from transformers import AutoProcessor

    from tpo_plugin import apply_tpo
    from tpo_plugin.training.hosts import load_host
    from tpo_plugin.training.run import load_run

    if name != HOST:
        return load_run(run_directory(directory, name))
    return apply_tpo(load_host(str(host)).eval(), AutoProcessor.from_pretrained(host), heads=["region", "temporal"])


# -- the run as a whole ------------------------------------------------------------------------------------------------


def _open(directory: Path, settings: dict[str, Any]) -> None:
    path = directory / "demo.json"
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        if there != settings:
            raise TPOError(f"{directory} has a demo with other settings ({there}); give another --output")
        return
    if any(found.name != LOCK_FILE for found in directory.iterdir()):
        raise TPOError(f"{directory} is not empty, and no demo; give another --output")
    path.write_text(json.dumps(settings) + "\n", encoding="utf-8")


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:24}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    return Progress(*columns, TimeElapsedColumn(), console=console)


def _wait(progress: Progress, bars: dict[str, tuple[list[Future], Callable[[], int], int]]) -> None:
    """Shows how far the jobs are until all are done; the first that fails raises."""
    tasks = {name: progress.add_task(name, total=total) for name, (_, _, total) in bars.items()}
    while True:
        running = False
        for name, (jobs, done, total) in bars.items():
            finished = all(job.done() for job in jobs)
            running |= not finished
            progress.update(tasks[name], completed=total if finished else done())
            if failed := [job for job in jobs if job.done() and job.exception()]:
                for child in multiprocessing.active_children():
                    child.terminate()
                failed[0].result()
        if not running:
            return
        time.sleep(0.5)


def _log(directory: Path, name: str) -> Path:
    return directory / f"{FILES.get(name, name)}.log"


def _steps(log: Path) -> int:
    """Training steps so far, by the lines that the Trainer logs."""
    if not log.is_file():
        return 0
    return LOGGING_STEPS * log.read_text(encoding="utf-8", errors="replace").count("'loss': ")
