"""`tpo demo`: data, three stages, the same training with boxes as words, and the results.

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
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tpo_plugin.config import TPOConfig
from tpo_plugin.errors import TPOError
from tpo_plugin.training.config import DataConfig, DataSource, StageConfig, TrainConfig
from tpo_shapes.baselines import best_constant_box, record_as_text, without_masks
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
from tpo_shapes.micro_sam import ARCHITECTURE, SAM_STEPS, train_micro_sam
from tpo_shapes.outlines import compare_masks, load_compared, score_masks
from tpo_shapes.report import CONSTANT, HOST, TEXT, TPO, mask_table, table, write_report
from tpo_shapes.stopwatch import Stopwatch

HOST_DIRECTORY = Path(__file__).resolve().parents[2] / "host"
SHARDS = ("train-0", "train-1")
LOGGING_STEPS = 5
HEADS = {TPO: ("region", "mask"), TEXT: ("region",)}
FILES = {TPO: "tpo", TEXT: "text", HOST: "host"}
"""What the files of a model are called in the demo's directory."""
MASK_HEAD: dict[str, Any] = {**ARCHITECTURE, "losses": ["pixel", "prompt"], "given_box": "adapter"}
"""The mask head on the demo's own SAM 2; a box that the user gives reaches it through the language model alone."""


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
    sam_steps: tuple[int, ...]
    """Of the micro SAM 2, on clips of 1, 2 and 4 frames."""


FULL = Size(
    num_scenes=5000,
    num_clips=2400,
    heldout_scenes=300,
    heldout_clips=200,
    steps=(50, 350, 200),
    batch_size=48,
    sam_steps=SAM_STEPS,
)
QUICK = Size(
    num_scenes=96,
    num_clips=24,
    heldout_scenes=12,
    heldout_clips=6,
    steps=(5, 15, 5),
    batch_size=16,
    sam_steps=(2, 1, 1),
)


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
    cpu = {name: result["cpu_s"] for name, result in done.items()}
    results = {
        **settings,
        "quick": quick,
        "rows": {name: score(questions, answers[name]) for name in (TPO, TEXT, CONSTANT, HOST)},
        "masks": score_masks(questions, {TPO: answers[TPO], **load_compared(tracks_file(directory), questions)}),
        "seconds": {"wall": clock.seconds, "calls": clock.calls, "cpu": cpu},
        "versions": {name: version(name) for name in ("tpo-plugin", "torch", "transformers", "peft")},
    }
    (directory / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    write_report(directory, results, questions, answers)
    console.print(table(results))
    console.print(mask_table(results))
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
            return pool.submit(_work, _log(directory, name), job, *arguments)

        data = [start(name, _make_part, directory / "data" / name, size, seed) for name in (*SHARDS, "heldout")]
        _wait(progress, {"data": (data, lambda: sum(job.done() for job in data), len(data))})
        jobs = {name: start(name, _train_and_answer, host, directory, size, seed, name) for name in HEADS}
        jobs[HOST] = start(HOST, _answer_before, host, directory)
        bars = {name: ([jobs[name]], partial(_steps, _log(directory, name)), total) for name in HEADS}
        _wait(progress, {**bars, HOST: ([jobs[HOST]], lambda: 0, 1)})
    return {name: job.result() for name, job in jobs.items()}


def sam_file(directory: Path) -> Path:
    """Where the weights of the demo's SAM 2 are."""
    return directory / "micro_sam.safetensors"


def tracks_file(directory: Path) -> Path:
    """Where the masks are that the answers' are compared with."""
    return directory / "tracks.json"


def train_config(host: Path, directory: Path, size: Size, seed: int, name: str) -> TrainConfig:
    """The three stages of `TPO`, or of the baseline: the same steps on the same records.

    `TEXT` trains nothing of TPO: its model has the region head, which nothing calls, and a host whose input has no task
    token computes what it computed before. The host never learned numbers, so the baseline trains the word embeddings
    too.
    """
    as_text = name == TEXT
    tpo_parts = ("heads", "tokens")

    def text_rates(rates: dict[str, float]) -> dict[str, float]:
        host_parts = {part: rate for part, rate in rates.items() if part not in (*tpo_parts, "triggers")}
        return host_parts | {"words": rates["lora"]}

    def stage(number: int, rates: dict[str, float], chat: float, losses: list[str] | None = None) -> StageConfig:
        return StageConfig(
            learning_rates=text_rates(rates) if as_text else rates,
            losses=["mllm"] if as_text else losses,
            data=[
                DataSource(
                    file=str(directory / "data" / shard / f"{_records(prefix + kind, name)}.jsonl"),
                    weight=weight * passes,
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

    def parts(rate: float) -> dict[str, float]:
        return {"lora": rate, **dict.fromkeys(tpo_parts, rate)}

    mask_head = {**MASK_HEAD, "checkpoint": str(sam_file(directory))}
    return TrainConfig(
        model=str(host),
        output_dir=str(directory if name == TPO else directory / FILES[name]),
        heads=list(HEADS[name]),
        tpo=TPOConfig() if as_text else TPOConfig(loss_weights={"region": 5.0}, heads={"mask": mask_head}),
        modules={"words": r"(^|\.)(embed_tokens|lm_head)\."} if as_text else {},
        seed=seed,
        data=DataConfig(video=dict(VIDEO)),
        stage1=stage(1, {"lora": 3e-3, "triggers": 3e-3}, chat=1.0, losses=["mllm", "assign"]),
        stage2=stage(2, parts(3e-3), chat=0.4),
        stage3=stage(3, {**parts(1e-3), "connector": 2e-4, "vision": 2e-4}, chat=0.7),
    )


def _records(kind: str, name: str) -> str:
    """The file of records that a run takes for a kind of them."""
    return f"{kind}_text" if name == TEXT else kind


def heldout_files(directory: Path) -> list[Path]:
    """The records that evaluation asks about."""
    return [directory / "data" / "heldout" / f"{p}{kind}.jsonl" for p in ("", "clip_") for kind in ("chat", "tasks")]


def constant_answers(directory: Path) -> list[Answer]:
    """The box that is right most often in training, one for pictures and one for clips."""
    import numpy as np

    files = [directory / "data" / shard for shard in SHARDS]
    best = {}
    for clip, prefix in enumerate(("", "clip_")):
        asked = read_questions(root / f"{prefix}tasks.jsonl" for root in files)
        boxes = np.array([q.box for q in asked if q.box is not None][:2000])
        best[bool(clip)] = best_constant_box(boxes).tolist()
    return [Answer("", [best[q.clip]] if q.wanted == "box" else []) for q in read_questions(heldout_files(directory))]


# -- jobs of the worker processes --------------------------------------------------------------------------------------


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)


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
    """One training shard or the held-out scenes, with the records as the baseline takes them."""
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
        records = [without_masks(record) for record in records]
        write_records(root / f"{_records(key, TEXT)}.jsonl", map(record_as_text, records))
    (root / "done").touch()


def _train_and_answer(host: Path, directory: Path, size: Size, seed: int, name: str) -> dict[str, Any]:
    from tpo_plugin.training.run import load_run, train

    seconds: dict[str, float] = {}
    if name == TPO:
        with Stopwatch(directory / "micro_sam.seconds", time.process_time) as clock:
            if not sam_file(directory).is_file():
                train_micro_sam(sam_file(directory), size.sam_steps, seed)
        seconds["sam"] = clock.seconds
    with Stopwatch(directory / f"{FILES[name]}.training.seconds", time.process_time) as clock:
        run = train(train_config(host, directory, size, seed, name))
    seconds["training"] = clock.seconds
    answered = _answer(lambda: load_run(run), directory, name)
    if name == TPO:
        with Stopwatch(directory / "tracks.seconds", time.process_time) as clock:
            if not tracks_file(directory).is_file():
                compare_masks(load_run(run), read_questions(heldout_files(directory)), tracks_file(directory))
        seconds["tracks"] = clock.seconds
    answered["cpu_s"] |= seconds
    return answered


def _answer_before(host: Path, directory: Path) -> dict[str, Any]:
    """The host with heads applied and nothing trained answers as the host does."""
    from transformers import AutoProcessor

    from tpo_plugin import apply_tpo
    from tpo_plugin.training.run import load_host

    def model() -> Any:
        return apply_tpo(load_host(str(host)).eval(), AutoProcessor.from_pretrained(host), heads=list(HEADS[TEXT]))

    return _answer(model, directory, HOST)


def _answer(load: Callable[[], Any], directory: Path, name: str) -> dict[str, Any]:
    """Asks a model all questions, unless an earlier call did."""
    path = directory / f"answers_{FILES[name]}.jsonl"
    with Stopwatch(directory / f"{FILES[name]}.answers.seconds", time.process_time) as clock:
        if not path.is_file():
            questions = read_questions(heldout_files(directory))
            save_answers(path, answer_questions(load(), questions, as_text=name in (TEXT, HOST)))
    return {"answers": path, "cpu_s": {"answers": clock.seconds}}


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


def _log(directory: Path, name: str) -> Path:
    return directory / f"{FILES.get(name, name)}.log"


def _steps(log: Path) -> int:
    """Training steps so far, by the lines that the Trainer logs."""
    if not log.is_file():
        return 0
    return LOGGING_STEPS * log.read_text(encoding="utf-8", errors="replace").count("'loss': ")
