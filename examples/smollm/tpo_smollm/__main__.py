"""A real language model as the host: what TPO is worth on it, beside boxes as text and heads on a frozen host.

    python -m tpo_smollm DIRECTORY [--seed 0 1 2] [--quick]

The same call goes on where it was stopped, in whichever training, and ends with a table and DIRECTORY/results.json.

DIRECTORY/host               LLaVA-OneVision with SmolLM2, which can talk about pictures; one for all seeds
DIRECTORY/seed-N/tpo         a run of `tpo train`, as are text and frozen beside it
DIRECTORY/seed-N/*.json      what each model was worth; *.answers.jsonl what it said
DIRECTORY/*.seconds          CPU seconds of each job, over all calls
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tpo_shapes.stopwatch import Stopwatch
from transformers import AutoProcessor

from tpo_plugin import apply_tpo
from tpo_plugin.atomic import replace_file
from tpo_plugin.errors import TPOError
from tpo_plugin.training.folder import held
from tpo_plugin.training.hosts import load_host
from tpo_plugin.training.run import load_run, train
from tpo_smollm.general import HELDOUT, own_answers, train_prompts
from tpo_smollm.host import align, build_host, merge_run
from tpo_smollm.language import load_language
from tpo_smollm.measure import measure, read_questions, save_answers
from tpo_smollm.recipe import FOLDERS, GENERAL, HOST, host_config, train_config
from tpo_smollm.records import write_general, write_world
from tpo_smollm.sizes import FULL, QUICK, Size
from tpo_smollm.table import as_markdown

Language = Callable[[], tuple[Any, Any]]

LOOKED_AT = 16
"""Pictures of the evaluations in a run's log."""


def run(directory: Path, size: Size, seeds: list[int], language: Language = load_language) -> dict[str, Any]:
    """Makes the host and trains and measures all models of all seeds, and returns what stands in results.json."""
    with held(directory, "smollm.lock"):
        _open(directory, size)
        host = make_host(directory, size, language)
        found = {str(seed): run_seed(directory, host, size, seed) for seed in seeds}
        results = {
            "size": dataclasses.asdict(size),
            "seeds": found,
            "host": json.loads((directory / "host.json").read_text(encoding="utf-8")),
            "cpu_s": {
                file.relative_to(directory).with_suffix("").as_posix(): json.loads(file.read_text())["seconds"]
                for file in sorted(directory.rglob("*.seconds"))
            },
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("tpo-plugin", "torch", "transformers", "peft")},
        }
        _write(directory / "results.json", results)
    return results


def make_host(directory: Path, size: Size, language: Language) -> Path:
    """The folder of a host that can talk about pictures, without task tokens, coordinates in words or a head."""
    start, host, data = directory / "host-start", directory / "host", directory / "data" / "host"
    with _clock(directory / "align.seconds"):
        if not (start / "done").is_file():
            model, tokenizer = language()
            prompts = [*train_prompts(size.num_general), *HELDOUT[: size.heldout_general]]
            answers = own_answers(model, tokenizer, prompts, size.general_tokens)
            num = len(prompts) - size.heldout_general
            write_world(data, "train", size.num_pictures, seed=1)
            write_general(data / GENERAL, prompts[:num], answers[:num])
            kept = [(prompt, answer) for prompt, answer in zip(prompts[num:], answers[num:], strict=True) if answer]
            _write(directory / "own.json", kept)
            model, demo, processor = build_host(model, tokenizer)
            right = align(model, demo, tokenizer, size.align_steps, size.num_pictures)
            _write(directory / "host.json", {"patches_right": right})
            model.save_pretrained(start)
            processor.save_pretrained(start)
            (start / "done").touch()
    with _clock(directory / "chat.seconds"):
        if not (host / "done").is_file():
            train(host_config(start, data, directory / "host-run", size))
            merge_run(directory / "host-run", start, host)
            (host / "done").touch()
    heldout, look = directory / "data" / "heldout", directory / "data" / "look"
    if not (heldout / "done").is_file():
        write_world(heldout, "heldout", size.num_heldout, seed=2)
        write_world(look, "train", LOOKED_AT, seed=3)
        (heldout / "done").touch()
    return host


def run_seed(directory: Path, host: Path, size: Size, seed: int) -> dict[str, Any]:
    """Trains and measures what is compared: scores by name."""
    folder, data = directory / f"seed-{seed}", directory / "data" / f"seed-{seed}"
    folder.mkdir(exist_ok=True)
    if not (data / "done").is_file():
        write_world(data, "train", size.num_pictures, seed=10 + seed)
        (data / GENERAL).write_bytes((directory / "data" / "host" / GENERAL).read_bytes())
        (data / "done").touch()
    found = {HOST: _measured(directory, directory, "host-answers", size, lambda: _bare(host))}
    for name, key in FOLDERS.items():
        config = train_config(name, host, data, directory / "data" / "look", folder / key, size, seed)
        with _clock(folder / f"{key}.seconds"):
            train(config)
        found[name] = _measured(directory, folder, key, size, lambda run=folder / key: load_run(run))
    return found


def _measured(directory: Path, folder: Path, key: str, size: Size, load: Callable[[], Any]) -> dict[str, Any]:
    path = folder / f"{key}.json"
    if not path.is_file():
        own = json.loads((directory / "own.json").read_text(encoding="utf-8"))
        questions = read_questions(directory / "data" / "heldout", [prompt for prompt, _ in own])
        found, answers = measure(load(), questions, tuple(zip(*own, strict=True)), size.timed)  # type: ignore[arg-type]
        save_answers(folder / f"{key}.answers.jsonl", answers)
        _write(path, found)
    scores: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return scores


def _bare(host: Path) -> Any:
    """The host with a head that nothing trained, which answers as the host does."""
    return apply_tpo(load_host(str(host)).eval(), AutoProcessor.from_pretrained(host), heads=["region"])


def _clock(path: Path) -> Stopwatch:
    path.parent.mkdir(parents=True, exist_ok=True)
    return Stopwatch(path, time.process_time)


def _open(directory: Path, size: Size) -> None:
    path, settings = directory / "size.json", dataclasses.asdict(size)
    settings = json.loads(json.dumps(settings))
    if path.is_file() and (there := json.loads(path.read_text(encoding="utf-8"))) != settings:
        raise TPOError(f"{directory} has results of another size ({there}); give another folder")
    _write(path, settings)


def _write(path: Path, values: Any) -> None:
    replace_file(path, lambda name: Path(name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="a few steps: shows the path, not the quality")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(as_markdown(run(given.directory, QUICK if given.quick else FULL, given.seed)))


if __name__ == "__main__":
    main()
