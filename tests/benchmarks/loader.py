"""Samples a second of `RecordDataset`, by 0, 1 and 2 workers; wall time.

Of one set of pictures, from JSON Lines with files beside them, from a table of Hugging Face datasets, and from
WebDataset's shards, beside Pillow alone. Of one set of clips, 16 frames evenly out of each, by the decoders that are
installed, beside the bare decoder. All take turns in each round, and the tables have the median of the rounds. Every
round reads every medium once.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from tests.shards import as_dataset, chat, write_lines, write_shards
from tpo_plugin.data import RecordDataset, Records, VideoOptions, write_video
from tpo_plugin.data.format import RecordFormat
from tpo_plugin.data.sampling import uniform_indices

NUM_TIMES, NUM_FRAMES = 100, 16

Runs = dict[str, Callable[[], int]]


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


def videos(folder: Path, number: int, width: int, height: int) -> list[Path]:
    """H.264 of 4 seconds at 25 frames a second, a picture that drifts."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(number):
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((width, height))
        frames = ((time / 25, np.roll(np.asarray(coarse), 3 * time, axis=1)) for time in range(NUM_TIMES))
        found.append(write_video(folder / f"{index}.mp4", frames, NUM_TIMES / 25))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=512, help="pictures")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pictures = photos(options.samples, options.width, options.height)
        _measure(of_pictures(Path(folder), pictures), f"{options.samples} pictures", options.rounds)
        paths = videos(Path(folder), options.clips, options.width, options.height)
        _measure(of_clips(paths), f"{options.clips} clips", options.rounds)


def of_pictures(folder: Path, pictures: list[bytes]) -> Runs:
    records = [chat(str(number)) for number in range(len(pictures))]
    as_dataset(records, pictures).save_to_disk(f"{folder}/saved")
    names = {
        "JSON Lines, files": write_lines(folder, records, pictures),
        "datasets, saved": f"{folder}/saved",
        "WebDataset's shards": write_shards(folder, records, pictures, 100),
    }
    runs: Runs = {"Pillow alone": lambda: len([_decoded(data) for data in pictures])}
    for name, source in names.items():
        runs |= _passes(name, RecordDataset([Records(source, RecordFormat({}, {}))]))
    return runs


def of_clips(paths: list[Path]) -> Runs:
    records = [chat(path.stem, video=str(path)) for path in paths]
    bare = {"pyav": _with_pyav, "decord": _with_decord, "torchcodec": _with_torchcodec}
    runs: Runs = {}
    for backend, decode in bare.items():
        if find_spec({"pyav": "av"}.get(backend, backend)) is None:
            continue
        runs[f"{backend} alone"] = partial(_all, decode, paths)
        video = VideoOptions(num_frames=NUM_FRAMES, backend=backend)  # type: ignore[arg-type]
        runs |= _passes(backend, RecordDataset([Records(records, RecordFormat({}, {}))], video=video))
    return runs


def _measure(runs: Runs, title: str, rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number_of_round in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            number = run()
            if number_of_round:  # the first one warms up: which frames a file has is found once
                seconds[name].append(time.perf_counter() - start)
    table = Table("source", "samples/s (median)", "least to most", title=title)
    for name, found in seconds.items():
        rates = sorted(number / second for second in found)
        table.add_row(name, f"{statistics.median(rates):.0f}", f"{rates[0]:.0f} to {rates[-1]:.0f}")
    Console(width=100).print(table)


def _all(decode: Callable[[Path], int], paths: list[Path]) -> int:
    assert all(decode(path) == NUM_FRAMES for path in paths)
    return len(paths)


def _with_pyav(path: Path) -> int:
    """From its first frame to its last, since it cannot seek by number."""
    wanted = set(uniform_indices(NUM_TIMES, NUM_FRAMES))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        frames = [f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(stream)) if i in wanted]
    return len(frames)


def _with_decord(path: Path) -> int:
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    return len(reader.get_batch(uniform_indices(NUM_TIMES, NUM_FRAMES)).asnumpy())


def _with_torchcodec(path: Path) -> int:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1)
    return len(decoder.get_frames_at(uniform_indices(NUM_TIMES, NUM_FRAMES)).data)


def _decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _passes(name: str, dataset: RecordDataset) -> Runs:
    def run(num_workers: int) -> int:
        loader = DataLoader(dataset, 8, shuffle=True, num_workers=num_workers, collate_fn=_count)
        return sum(loader)

    return {f"{name}, {workers} workers": partial(run, workers) for workers in (0, 1, 2)}


def _count(samples: list[Any]) -> int:
    """How many; the media themselves stay in the worker, where a collator makes tensors of them."""
    return sum(len(sample.images) + len(sample.videos) for sample in samples)


if __name__ == "__main__":
    main()
