"""`tpo demo`: data, three stages, the same training with coordinates as text, and what both are worth.

DIRECTORY                 a run of `tpo train`, as `tpo predict` takes it
DIRECTORY/text            the baseline's run
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
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tpo_plugin.config import TPOConfig
from tpo_plugin.errors import TPOError
from tpo_plugin.training.config import DataConfig, DataSource, StageConfig, TrainConfig
from tpo_shapes.baselines import best_constant_box, record_as_text
from tpo_shapes.dataset import make_dataset, write_records
from tpo_shapes.evaluate import (
    VIDEO,
    Answer,
    answer_questions,
    load_answers,
    read_questions,
    save_answers,
    score,
)
from tpo_shapes.report import CONSTANT, HOST, TEXT, TPO, table, write_report
from tpo_shapes.stopwatch import Stopwatch

HOST_DIRECTORY = Path(__file__).resolve().parents[2] / "host"
SHARDS = ("train-0", "train-1")
LOGGING_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a run makes, trains and asks."""

    num_scenes: int
    """Training pictures; each has one record of conversation and one of tasks."""
    num_clips: int
    """Training clips."""
    heldout_scenes: int
    heldout_clips: int
    steps: tuple[int, int, int]
    """Of the three stages."""
    batch_size: int


FULL = Size(
    num_scenes=8000, num_clips=1600, heldout_scenes=300, heldout_clips=150, steps=(100, 300, 200), batch_size=48
)
QUICK = Size(num_scenes=96, num_clips=24, heldout_scenes=12, heldout_clips=6, steps=(10, 20, 10), batch_size=16)


def run_demo(directory: Path, size: Size, seed: int = 0, host: Path = HOST_DIRECTORY) -> dict[str, Any]:
    """Runs the whole demo and returns what stands in results.json.

    Raises `TPOError` where the host is not there, and where the folder has a run of other settings.
    """
    console = Console()
    if not (host / "config.json").is_file():
        raise TPOError(
            f"no host in {host}; it lies in the repository's examples/shapes/host, so install from there: "
            "pip install -e examples/shapes"
        )
    settings = {"seed": seed, "size": json.loads(json.dumps(dataclasses.asdict(size)))}
    _open(directory, settings)
    quick = size == QUICK
    if quick:
        console.print("[bold]--quick shows the path, not the quality: its numbers mean nothing[/bold]")
    with Stopwatch(directory / "all.seconds", time.monotonic) as clock:
        done = _run_jobs(directory, size, seed, host, console)
    questions = read_questions(heldout_files(directory))
    answers = {name: load_answers(result["answers"]) for name, result in done.items()}
    answers[CONSTANT] = constant_answers(directory)
    results = {
        **settings,
        "quick": quick,
        "rows": {name: score(questions, answers[name]) for name in (TPO, TEXT, CONSTANT, HOST)},
        "seconds": {
            "wall": clock.seconds,
            "calls": clock.calls,
            "cpu": {n: result["cpu_s"] for n, result in done.items()},
        },
        "versions": {name: version(name) for name in ("tpo-plugin", "torch", "transformers", "peft")},
    }
    (directory / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    write_report(directory, results, questions, answers)
    console.print(table(results))
    if quick:
        console.print("[bold]--quick shows the path, not the quality[/bold]; for the quality leave it out")
    picture = next(q for q in questions if q.box is not None and not q.clip)
    ask = f'tpo predict {directory} --image {picture.media} --prompt "{picture.text}" --output answer.png'
    console.print(f"report: {directory / 'report.html'}\nask it: {ask}", soft_wrap=True, highlight=False)
    return results


def _run_jobs(directory: Path, size: Size, seed: int, host: Path, console: Console) -> dict[str, dict[str, Any]]:
    """Data, then training and answers in two processes of one thread each; what the jobs returned."""
    total = sum(size.steps)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, initializer=_start_worker) as pool, _progress(console) as progress:

        def start(name: str, job: Callable[..., Any], *arguments: Any) -> Future:
            return pool.submit(_work, directory / f"{name}.log", job, *arguments)

        data = [start(name, _make_part, directory / "data" / name, size, seed) for name in (*SHARDS, "heldout")]
        _wait(progress, {"data": (data, lambda: sum(job.done() for job in data), len(data))})
        jobs = {
            TPO: start("tpo", _train_and_answer, host, directory, size, seed, False),
            TEXT: start("text", _train_and_answer, host, directory, size, seed, True),
            HOST: start("host", _answer_before, host, directory),
        }
        _wait(
            progress,
            {
                TPO: ([jobs[TPO]], lambda: _steps(directory / "tpo.log"), total),
                TEXT: ([jobs[TEXT]], lambda: _steps(directory / "text.log"), total),
                HOST: ([jobs[HOST]], lambda: 0, 1),
            },
        )
    return {name: job.result() for name, job in jobs.items()}


def train_config(host: Path, directory: Path, size: Size, seed: int, as_text: bool) -> TrainConfig:
    """The three stages; `as_text` is the baseline: the same steps on the same records, without anything of TPO.

    The baseline's model has the region head too, which nothing calls: a host whose input has no task token computes
    what it computed before. The host never learned numbers, so the baseline trains the word embeddings too.
    """
    tpo_parts = ("heads", "tokens")
    suffix = "_text" if as_text else ""

    def text_rates(rates: dict[str, float]) -> dict[str, float]:
        host_parts = {part: rate for part, rate in rates.items() if part not in (*tpo_parts, "triggers")}
        return host_parts | {"words": rates["lora"]}

    def stage(number: int, rates: dict[str, float], chat: float, losses: list[str] | None = None) -> StageConfig:
        return StageConfig(
            learning_rates=text_rates(rates) if as_text else rates,
            losses=["mllm"] if as_text else losses,
            data=[
                DataSource(
                    file=str(directory / "data" / shard / f"{prefix}{kind}{suffix}.jsonl"), weight=weight * passes
                )
                for shard in SHARDS
                for prefix, passes in (("", 1.0), ("clip_", 2.0))
                for kind, weight in (("chat", chat), ("tasks", 1.0))
            ],
            steps=size.steps[number - 1],
            batch_size=size.batch_size,
            micro_batch_size=size.batch_size,
            warmup=0.1,
            save_steps=200,
            logging_steps=LOGGING_STEPS,
            trainer={"disable_tqdm": True, "report_to": "none"},
        )

    return TrainConfig(
        model=str(host),
        output_dir=str(directory / "text" if as_text else directory),
        heads=["region"],
        tpo=TPOConfig(loss_weights={"region": 5.0}),
        modules={"words": r"(^|\.)(embed_tokens|lm_head)\."} if as_text else {},
        seed=seed,
        data=DataConfig(video=dict(VIDEO)),
        stage1=stage(1, {"lora": 3e-3, "triggers": 3e-3}, chat=1.0, losses=["mllm", "assign"]),
        stage2=stage(2, {"lora": 3e-3, **dict.fromkeys(tpo_parts, 3e-3)}, chat=0.4),
        stage3=stage(3, {"lora": 1e-3, **dict.fromkeys(tpo_parts, 1e-3), "connector": 5e-4, "vision": 5e-4}, chat=1.0),
    )


def heldout_files(directory: Path) -> list[Path]:
    """The records that evaluation asks about."""
    return [directory / "data" / "heldout" / f"{p}{kind}.jsonl" for p in ("", "clip_") for kind in ("chat", "tasks")]


def constant_answers(directory: Path) -> list[Answer]:
    """To every region question the box that is right most often in training, one for pictures and one for clips."""
    import numpy as np

    files = [directory / "data" / shard for shard in SHARDS]
    best = {}
    for clip, prefix in enumerate(("", "clip_")):
        asked = read_questions(root / f"{prefix}tasks.jsonl" for root in files)
        boxes = np.array([q.box for q in asked if q.box is not None][:2000])
        best[bool(clip)] = best_constant_box(boxes).tolist()
    questions = read_questions(heldout_files(directory))
    return [Answer("", [best[q.clip]], called=True) if q.box is not None else Answer("") for q in questions]


# -- jobs of the worker processes --------------------------------------------------------------------------------------


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)


def _work(log: Path, job: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a job with all that it prints in a file."""
    with log.open("w", encoding="utf-8") as file:
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
    """One training shard or the held-out scenes, with every record once more with coordinates as text."""
    if (root / "done").is_file():
        return
    if root.name in SHARDS:
        share, index = len(SHARDS), SHARDS.index(root.name)
        counts = (size.num_scenes // share, size.num_clips // share)
        files = make_dataset(root, "train", counts[0], 1000 * seed + 10 * index, counts[1])
    else:
        files = make_dataset(root, "heldout", size.heldout_scenes, 1000 * seed + 500, size.heldout_clips)
    for key, file in files.items():
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        write_records(root / f"{key}_text.jsonl", map(record_as_text, records))
    (root / "done").touch()


def _train_and_answer(host: Path, directory: Path, size: Size, seed: int, as_text: bool) -> dict[str, Any]:
    from tpo_plugin.training.run import load_run, train

    name = "text" if as_text else "tpo"
    with Stopwatch(directory / f"{name}.training.seconds", time.process_time) as training:
        run = train(train_config(host, directory, size, seed, as_text))
    with Stopwatch(directory / f"{name}.answers.seconds", time.process_time) as answering:
        path = _answer(load_run(run), directory, name, as_text)
    return {"answers": path, "cpu_s": {"training": training.seconds, "answers": answering.seconds}}


def _answer_before(host: Path, directory: Path) -> dict[str, Any]:
    """The host with heads applied and nothing trained answers as the host does."""
    from transformers import AutoProcessor

    from tpo_plugin import apply_tpo
    from tpo_plugin.training.run import load_host

    begin = time.process_time()
    model = apply_tpo(load_host(str(host)).eval(), AutoProcessor.from_pretrained(host), heads=["region"])
    path = _answer(model, directory, "host", as_text=True)
    return {"answers": path, "cpu_s": {"answers": time.process_time() - begin}}


def _answer(model: Any, directory: Path, name: str, as_text: bool) -> Path:
    path = directory / f"answers_{name}.jsonl"
    save_answers(path, answer_questions(model, read_questions(heldout_files(directory)), as_text=as_text))
    return path


# -- the run as a whole ------------------------------------------------------------------------------------------------


def _open(directory: Path, settings: dict[str, Any]) -> None:
    path = directory / "demo.json"
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        if there != settings:
            raise TPOError(f"{directory} has a demo with other settings ({there}); give another --output")
        return
    if directory.is_dir() and any(directory.iterdir()):
        raise TPOError(f"{directory} is not empty, and no demo; give another --output")
    directory.mkdir(parents=True, exist_ok=True)
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


def _steps(log: Path) -> int:
    """Training steps so far, by the lines that the Trainer logs."""
    if not log.is_file():
        return 0
    return LOGGING_STEPS * log.read_text(encoding="utf-8", errors="replace").count("'loss': ")
