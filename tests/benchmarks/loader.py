"""Samples a second of `RecordDataset` over one set of pictures, from JSON Lines with files beside them, from a table of
Hugging Face datasets, and from WebDataset's shards, by 0, 1 and 2 workers, beside Pillow alone; wall time.

The kinds take turns in each round, and the table has the median of the rounds. Every round reads every picture once.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from tests.shards import as_dataset, chat, write_lines, write_shards
from tpo_plugin.data import RecordDataset, Records
from tpo_plugin.data.format import RecordFormat


def photos(number: int, width: int, height: int) -> list[bytes]:
    """Smooth pictures with some noise, as JPEG."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(number):
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((width, height))
        noisy = np.asarray(coarse).astype(int) + rng.integers(-8, 8, (height, width, 3))
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pictures = photos(options.samples, options.width, options.height)
    records = [chat(str(number)) for number in range(options.samples)]
    runs: dict[str, Callable[[], int]] = {"Pillow alone": lambda: len([_decoded(data) for data in pictures])}
    with tempfile.TemporaryDirectory() as folder:
        as_dataset(records, pictures).save_to_disk(f"{folder}/saved")
        names = {
            "JSON Lines, files": write_lines(Path(folder), records, pictures),
            "datasets, saved": f"{folder}/saved",
            "WebDataset's shards": write_shards(Path(folder), records, pictures, 100),
        }
        for name, source in names.items():
            dataset = RecordDataset([Records(source, RecordFormat({}, {}))])
            for num_workers in (0, 1, 2):
                runs[f"{name}, {num_workers} workers"] = _pass(dataset, num_workers)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                assert run() == options.samples, name
                seconds[name].append(time.perf_counter() - start)
    table = Table("source", "samples/s (median)", "least to most", title=f"{options.samples} pictures")
    for name, found in seconds.items():
        rates = sorted(options.samples / second for second in found)
        table.add_row(name, f"{statistics.median(rates):.0f}", f"{rates[0]:.0f} to {rates[-1]:.0f}")
    Console(width=100).print(table)


def _decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _pass(dataset: RecordDataset, num_workers: int) -> Callable[[], int]:
    loader = DataLoader(dataset, 8, shuffle=True, num_workers=num_workers, collate_fn=_count)
    return lambda: sum(loader)


def _count(samples: list[Any]) -> int:
    """How many; the pictures themselves stay in the worker, where a collator makes tensors of them."""
    return sum(len(sample.images) for sample in samples)


if __name__ == "__main__":
    main()
