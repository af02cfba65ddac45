"""What the parts of TPO do, each against the same training without it.

    python -m tpo_shapes.ablation runs/ablation --seed 0 1 2 --jobs 2

Trains the cells of `tpo_shapes.cells` on each seed's splits, has each answer the test split, and compares them seed by
seed. Each cell is a process of one thread, `--jobs` of them at a time. The same call goes on where it stopped: a cell
that has its result is not run again, and one that was killed goes on from its last checkpoint. A cell that fails is
told, and the others go on.

DIRECTORY/seed-N/data      the splits
DIRECTORY/seed-N/CELL      a run of `tpo train`, with result.json, and all that it printed in log.txt
DIRECTORY/ablation.json    the results of all cells that have one; where they stand in it they are not run again
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from tpo_plugin.atomic import replace_file
from tpo_plugin.errors import TPOError
from tpo_plugin.training.folder import held
from tpo_shapes.cells import CELLS, FULL_CELL, QUICK_CELL, Cell, configuration
from tpo_shapes.demo import HOST_DIRECTORY, start_worker
from tpo_shapes.effect import cells_table, claims_table, differences_table, rich_table
from tpo_shapes.evaluate import GIVEN, Question, answer_questions, read_questions, score
from tpo_shapes.micro_sam import WEIGHTS
from tpo_shapes.outlines import score_masks
from tpo_shapes.recipe import Size, sam_file
from tpo_shapes.splits import KINDS, TEST, VALIDATION, VERSION, checksum, make_splits
from tpo_shapes.stopwatch import Stopwatch

LOCK_FILE, RESULT, RESULTS = "ablation.lock", "result.json", "ablation.json"
TIMED = 24
"""Questions about boxes that are asked one by one, for the time of an answer."""
Result = dict[str, Any]


def run_grid(
    directory: Path, cells: Sequence[str], seeds: Sequence[int], *, jobs: int, size: Size, split: str = TEST
) -> tuple[list[Result], list[str]]:
    """Runs the cells that have no result yet; returns the results of all that have one, also of an earlier call, and a
    line for each that failed.

    Raises `TPOError` for a folder that another call runs in, and for results of another recipe.
    """
    console, failed = Console(), []
    with held(directory, LOCK_FILE), _pool(jobs) as pool:
        done = {(result["cell"], result["seed"]) for result in _results(directory, size, split)}
        wanted = [(name, seed) for name in cells for seed in seeds if (name, seed) not in done]
        worlds = {
            seed: pool.submit(_apart, _world(directory, seed), make_world, size, seed)
            for seed in dict.fromkeys(seed for _, seed in wanted)
        }
        made = [seed for seed, world in worlds.items() if world.result() == 0]
        failed += [f"the splits of seed {seed}: {_log(_world(directory, seed))}" for seed in worlds if seed not in made]
        runs = {
            pool.submit(_apart, _world(directory, seed) / name, run_cell, name, size, seed, split): (name, seed)
            for name, seed in wanted
            if seed in made
        }
        for number, run in enumerate(as_completed(runs), 1):
            name, seed = runs[run]
            good = run.result() == 0
            console.print(f"{number} of {len(runs)}: {name}, seed {seed}: {'done' if good else 'FAILED'}")
            if not good:
                failed.append(f"{name}, seed {seed}: {_log(_world(directory, seed) / name)}")
        return _results(directory, size, split), failed


@contextmanager
def _pool(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that wait for processes; what has not begun never does where it is left by an error or Ctrl-C."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _results(directory: Path, size: Size, split: str) -> list[Result]:
    """Of all cells that have one, also in `RESULTS` alone; raises `TPOError` for one of another recipe."""
    paths = [path for name in CELLS for path in directory.glob(f"seed-*/{name}/{RESULT}")]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if (directory / RESULTS).is_file():
        found = [*json.loads((directory / RESULTS).read_text(encoding="utf-8")), *found]
    for result in found:
        name, seed = result["cell"], result["seed"]
        if name not in CELLS or result["recipe"] != recipe_of(name, size, seed, split):
            raise TPOError(
                f"{directory} has the result of another recipe, of {name} with seed {seed}; remove it there and from "
                f"{RESULTS}, or give another folder"
            )
    order = list(CELLS)
    newest = {(order.index(result["cell"]), result["seed"]): result for result in found}
    return [newest[key] for key in sorted(newest)]


def _world(directory: Path, seed: int) -> Path:
    return directory / f"seed-{seed}"


def _log(folder: Path) -> Path:
    return folder / "log.txt"


def recipe_of(name: str, size: Size, seed: int, split: str) -> str:
    """A hash of what a cell's result depends on: configuration, splits, host and SAM 2; not of code and libraries."""
    config = configuration(CELLS[name], Path("world"), Path("cell"), size, seed).to_dict() | {"model": ""}
    settings = [VERSION, name, seed, split, size.heldout_scenes, size.heldout_clips, config]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for weights in (HOST_DIRECTORY / "model.safetensors", WEIGHTS):
        digest.update(weights.read_bytes())
    return digest.hexdigest()


# -- processes ---------------------------------------------------------------------------------------------------------


def _apart(folder: Path, job: Callable[..., None], *arguments: Any) -> int:
    """Runs a job in a process of its own, with all that it prints in a file: its exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(folder, job, *arguments), daemon=True)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _work(folder: Path, job: Callable[..., None], *arguments: Any) -> None:
    start_worker()
    with _log(folder).open("a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
        job(folder, *arguments)


def make_world(folder: Path, size: Size, seed: int) -> None:
    """The splits of a seed, and the SAM 2 that its cells load."""
    make_splits(folder / "data", size, seed)
    shutil.copyfile(WEIGHTS, sam_file(folder))


def run_cell(folder: Path, name: str, size: Size, seed: int, split: str) -> None:
    """Trains a cell, or goes on with it, and writes what it is worth."""
    from tpo_plugin.training.run import load_run, train
    from tpo_shapes.moment_mlp import registered

    cell, root = CELLS[name], folder.parent / "data" / split
    with Stopwatch(folder / "cpu.seconds", time.process_time) as clock, registered(name == "moment-mlp"):
        if cell.trains:
            train(configuration(cell, folder.parent, folder, size, seed))
            model = load_run(folder)
        else:
            model = _host()
        found = measure(model, cell, root)
    result = {
        "cell": name,
        "seed": seed,
        "split": split,
        "splits": {"version": VERSION, "sha256": checksum(root)},
        "recipe": recipe_of(name, size, seed, split),
        "seconds": round(clock.seconds),
        "calls": clock.calls,
        "versions": {package: version(package) for package in ("tpo-plugin", "torch", "transformers", "peft")},
        **found,
    }
    text = json.dumps(result) + "\n"
    replace_file(folder / RESULT, lambda path: Path(path).write_text(text, encoding="utf-8"))


def _host() -> Any:
    """The host with heads and nothing trained, which answers as the host does."""
    from transformers import AutoProcessor

    from tpo_plugin import apply_tpo
    from tpo_plugin.training.hosts import load_host

    host = load_host(str(HOST_DIRECTORY)).eval()
    return apply_tpo(host, AutoProcessor.from_pretrained(HOST_DIRECTORY), heads=["region"])


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(model: Any, cell: Cell, root: Path) -> dict[str, Any]:
    """What a model's answers to a split's questions are worth: "measures" (`effect.MEASURES`), and below them "scores"
    of pictures and clips and of "masks" by kind, as the demo has them."""
    questions = [q for q in read_questions(root / f"{kind}.jsonl" for kind in KINDS) if _head(q) in (None, *cell.asks)]
    answers = answer_questions(model, questions, as_text=cell.as_text)
    found = score(questions, answers)
    masks = score_masks(questions, {"": answers})[""]
    images, clips = found["images"], found["clips"]
    measures = {
        "boxes": _mean(images["acc50"], clips["acc50"]),
        "given": _mean(images["given"], clips["given"]),
        "moments": clips["r1_50"],
        "masks": _mean(*(scores.get("J&F") for scores in masks.values())),
        "chat": _mean(images["chat"], clips["chat"]),
        "words": word_loss(model, root),
        "ms": _milliseconds(model, questions, cell),
    }
    return {"measures": measures, "scores": found, "masks": masks}


def _head(question: Question) -> str | None:
    """The head that a question needs."""
    wanted = {"box": "region", "moment": "temporal", "mask": "mask", None: None}
    return "region" if question.kind in GIVEN else wanted[question.wanted]


def _mean(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def word_loss(model: Any, root: Path) -> float:
    """Of a word of the true answers in conversation, about pictures and clips: its cross entropy in nats, of all words
    before it the true ones."""
    import torch

    from tpo_plugin.data import RecordDataset, Records, TPOCollator, VideoOptions
    from tpo_shapes.evaluate import VIDEO

    collate, total, words = TPOCollator(model.tpo), 0.0, 0
    for kind in ("chat", "clip_chat"):
        data = RecordDataset([Records(str(root / f"{kind}.jsonl"), model.tpo)], video=VideoOptions(**VIDEO))
        for start in range(0, len(data), 25):
            batch = collate([data[index] for index in range(start, min(start + 25, len(data)))])
            number = int((batch["labels"][:, 1:] >= 0).sum())
            with torch.no_grad():
                total += number * float(model(**batch).tpo.losses["mllm"])
            words += number
    return total / words


def _milliseconds(model: Any, questions: Sequence[Question], cell: Cell) -> float | None:
    """CPU time of an answer to a question about a box in a picture, asked alone, reading the picture included."""
    asked = [question for question in questions if question.wanted == "box" and not question.clip][:TIMED]
    if not asked:
        return None
    answer_questions(model, asked[:2], as_text=cell.as_text, batch_size=1)
    started = time.process_time()
    answer_questions(model, asked, as_text=cell.as_text, batch_size=1)
    return 1000 * (time.process_time() - started) / len(asked)


# -- the command -------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 where a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2], help="of splits and training; 0 1 2")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each; 2")
    parser.add_argument(
        "--cells", nargs="+", choices=list(CELLS), metavar="CELL", default=list(CELLS), help=f"of {', '.join(CELLS)}"
    )
    parser.add_argument("--split", choices=[TEST, VALIDATION], default=TEST, help="what is asked about; test")
    parser.add_argument("--quick", action="store_true", help="a few steps: the path, not the effect")
    given = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started
    size = QUICK_CELL if given.quick else FULL_CELL
    results, failed = run_grid(given.directory, given.cells, given.seed, jobs=given.jobs, size=size, split=given.split)
    lines = "[\n" + ",\n".join(map(json.dumps, results)) + "\n]\n"
    (given.directory / RESULTS).write_text(lines, encoding="utf-8")
    console = Console()
    for table in (cells_table, differences_table, claims_table):
        console.print(rich_table(*table(results)))
    for sentence in failed:
        console.print(f"[bold]failed[/bold]: {sentence}", highlight=False)
    if given.quick:
        console.print("[bold]--quick shows the path, not the effect: its numbers mean nothing[/bold]")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
