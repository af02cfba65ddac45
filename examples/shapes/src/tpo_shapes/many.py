"""All, several, none: boxes of many objects, as a sequence of task tokens or as a set from one.

    python -m tpo_shapes.many runs/many --seed 0

Pictures of up to 20 shapes, "find the red objects.", and as many boxes as there are. The host is trained twice on the
same questions, in as many steps: with the head `region`, one token and one box after another, from left to right, and
with `region_set`, all boxes from one token. Where there is nothing, the answer says so, without a token. Both answer
held-out questions by generation. What was measured is printed, and written to results.json in the folder.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from PIL import Image

from tpo_plugin.config import TPOConfig
from tpo_plugin.training.config import DataSource, LoraSettings, StageConfig, TrainConfig
from tpo_shapes.crowds import MOST, sample_crowds
from tpo_shapes.dataset import write_records
from tpo_shapes.demo import HOST_DIRECTORY
from tpo_shapes.questions import Object, objects_of
from tpo_shapes.stopwatch import Stopwatch
from tpo_shapes.world import COLOURS, SHAPES, render, sample_backgrounds

HEADS = ("region", "region_set")
NUMBERS = (0, 1, 3, 8, MOST)
"""Objects that a held-out question asks for."""
NAMES = ("", *SHAPES, *COLOURS)
"""Of what questions ask for; "" is everything."""
WORDINGS = ("find the {} objects.", "where are the {} objects?", "show me the {} objects.", "locate the {} objects.")
NOTHING = "no it is not here"
"""Which the host says already, of an object that is not there."""
LOSS_WEIGHTS = {"region": 5.0, "region_set": 2.0}
"""With which a box pulls about as strongly in both."""
RESULTS = Path(__file__).parents[2] / "many.json"
"""In a clone of the repository: a list of what seeds measured."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is made, trained and asked."""

    num_scenes: int
    steps: tuple[int, int]
    """Of the stages of words and of boxes."""
    batch_size: int
    asked: int
    """Questions for each of `NUMBERS`."""
    timed: int
    """Of them, those that are also asked one by one."""


FULL = Size(num_scenes=3000, steps=(30, 570), batch_size=24, asked=100, timed=10)


# -- data --------------------------------------------------------------------------------------------------------------


def make_questions(root: Path, split: str, numbers: Sequence[int], seed: int) -> None:
    """Pictures and records, a file for each head: one question that asks for each of `numbers`, of training scenes up
    to two more about the same scene."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    rng, words = np.random.default_rng([seed, split == "train"]), random.Random(f"{seed} {split}")
    wanted = [(words.choice(NAMES if number else NAMES[1:]), number) for number in numbers]
    records: dict[str, list[dict[str, Any]]] = {head: [] for head in HEADS}
    for start in range(0, len(wanted), 64):
        part = wanted[start : start + 64]
        scenes = sample_crowds(rng, part)
        frames = render(rng, scenes, sample_backgrounds(rng, len(part), split))
        for index, (name, _) in enumerate(part):
            media = f"images/{start + index:06d}.png"
            Image.fromarray(frames[index, 0]).save(root / media, compress_level=1)
            others = words.sample([n for n in NAMES if n != name], 2) if split == "train" else []
            asked = [(" ".join(words.choice(WORDINGS).format(n).split()), n) for n in (name, *others)]
            objects = objects_of(scenes, index)
            for head in HEADS:
                records[head].append(make_record(head, media, [(text, boxes_named(objects, n)) for text, n in asked]))
    for head, lines in records.items():
        write_records(root / f"{head}.jsonl", lines)


def boxes_named(objects: Sequence[Object], name: str) -> list[list[float]]:
    """Of those with a colour or shape of that name, or of all, from left to right."""
    return sorted(o.boxes_xyxy[0] for o in objects if name in ("", o.colour, o.shape))


def make_record(head: str, media: str, asked: Sequence[tuple[str, list[list[float]]]]) -> dict[str, Any]:
    """A conversation of questions with their boxes."""
    turns, tasks = [], []
    for number, (question, boxes) in enumerate(asked):
        turns.append({"from": "human", "value": ("" if number else "<image>\n") + question})
        turns.append({"from": "gpt", "value": f"it is here <{head}>" if boxes else NOTHING})
        tasks += [{"head": head, "boxes": boxes}] if boxes else []
    return {"id": media, "image": media, "conversations": turns, **({"tasks": tasks} if tasks else {})}


# -- training ----------------------------------------------------------------------------------------------------------


def train_config(directory: Path, head: str, size: Size, seed: int) -> TrainConfig:
    """As the demo's recipe, in two stages: the words and the trigger, then all. The vision tower trains with it, for it
    never saw shapes as small as these."""

    def stage(number: int, rates: dict[str, float], losses: list[str] | None = None) -> StageConfig:
        return StageConfig(
            learning_rates=rates,
            losses=losses,
            data=[DataSource(file=str(directory / "data" / "train" / f"{head}.jsonl"))],
            steps=size.steps[number],
            batch_size=size.batch_size,
            micro_batch_size=size.batch_size,
            warmup=0.1,
            max_grad_norm=0.0,
            trainer={"disable_tqdm": True, "report_to": "none", "adam_beta2": 0.98},
        )

    return TrainConfig(
        model=str(HOST_DIRECTORY),
        output_dir=str(directory / head),
        heads=[head],
        tpo=TPOConfig(loss_weights={head: LOSS_WEIGHTS[head]}),
        lora=LoraSettings(),
        seed=seed,
        stages={
            "words": stage(0, {"lora": 3e-3, "triggers": 3e-3}, ["mllm", "assign"]),
            "boxes": stage(1, {"lora": 3e-3, "tokens": 3e-3, "heads": 3e-3, "connector": 5e-4, "vision": 5e-4}),
        },
    )


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(model: Any, root: Path, head: str, size: Size) -> dict[str, dict[str, float]]:
    """By the number of objects that are asked for: `benchmarks.sets` of the answers, and `ms`, the median time of one
    that is asked alone, its picture prepared with it."""
    from tpo_head_region.benchmarks import boxes_of, sets

    from tpo_plugin.asking import ask
    from tpo_plugin.data import prompt_record, read_sample

    truth: dict[int, list[list[list[float]]]] = {}
    samples: dict[int, list[Any]] = {}
    for line in (root / f"{head}.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        wanted = [box for task in record.get("tasks", []) for box in task["boxes"]]
        question = record["conversations"][0]["value"].removeprefix("<image>\n")
        prompt = prompt_record(model.tpo, question, images=[root / record["image"]])
        truth.setdefault(len(wanted), []).append(wanted)
        samples.setdefault(len(wanted), []).append(read_sample(prompt))
    found = {}
    for number in sorted(samples):
        asked, room = samples[number], 8 + 2 * MOST
        parts = [asked[start : start + 50] for start in range(0, len(asked), 50)]
        answers = [answer for part in parts for answer in ask(model, part, max_new_tokens=room)]
        values = [[p.value for p in answer.predictions if p.value is not None] for answer in answers]
        numbers = sets([[box for v in given for box in boxes_of(v)] for given in values], truth[number])
        seconds = []
        for sample in asked[: size.timed]:
            start = time.perf_counter()
            ask(model, [sample], max_new_tokens=room)
            seconds.append(time.perf_counter() - start)
        found[str(number)] = {**numbers, "ms": 1000 * median(seconds)}
    return found


def run(directory: Path, size: Size, seed: int) -> dict[str, Any]:
    """Makes the data, trains with each head, and measures."""
    from tpo_plugin.training.run import load_run, train

    data = directory / "data"
    if not (data / "done").is_file():
        numbers = random.Random(seed).choices((0, 0, *range(1, 9), *range(1, MOST + 1)), k=size.num_scenes)
        make_questions(data / "train", "train", numbers, seed)
        make_questions(data / "heldout", "heldout", [n for n in NUMBERS for _ in range(size.asked)], seed)
        (data / "done").touch()
    found: dict[str, Any] = {}
    for head in HEADS:
        with Stopwatch(directory / f"{head}.seconds", time.process_time) as clock:
            train(train_config(directory, head, size, seed))
        numbers_of = measure(load_run(directory / head), data / "heldout", head, size)
        found[head] = {"numbers": numbers_of, "training_cpu_s": clock.seconds}
    return {"seed": seed, "heads": found}


# -- the table ---------------------------------------------------------------------------------------------------------

MEASURES = ("recall", "precision", "F1", "F1_score", "N-acc")


def load_results(path: Path = RESULTS) -> list[dict[str, Any]]:
    """What each seed measured."""
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def table(results: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The rows, the header first: for each number of objects and head the means over the seeds, in percent, and the
    milliseconds of an answer."""
    rows: list[tuple[str, ...]] = [("objects", "head", *MEASURES, "ms")]
    for number in map(str, NUMBERS):
        for head in HEADS:
            of_seeds = [result["heads"][head]["numbers"][number] for result in results]
            rows.append((number, head, *(_mean(of_seeds, key, 100) for key in MEASURES), _mean(of_seeds, "ms", 1)))
    return rows


def _mean(of_seeds: Sequence[dict[str, float]], key: str, scale: float) -> str:
    known = [scale * numbers[key] for numbers in of_seeds if key in numbers]
    return f"{mean(known):.{1 if scale > 1 else 0}f}" if known else "-"


def main() -> None:
    """Each seed in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = [run(given.directory / f"seed-{seed}", FULL, seed) for seed in given.seed]
    (given.directory / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    rows = table(results)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main()
