"""CPU seconds that J&F takes, against SA-V's own evaluator where a checkout of facebookresearch/sam2 is given.

    python heads/mask/tests/benchmarks/jf.py --reference path/to/sam2/sav_dataset

Both read the same PNGs, in one process on one thread, in turn; the reference needs OpenCV and scikit-image. Two sets:
the golden sequences (--golden, 64 x 96 to 120 x 160 pixels), and made-up ones of DAVIS's size, 480 x 854, whose objects
have ragged outlines. A first round warms up and is not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tpo_head_mask.score import score_folders

GOLDEN = Path(__file__).resolve().parents[4].parent / "shared" / "golden" / "video_masks"


def write(root: Path, name: str, masks: np.ndarray) -> None:
    """PNGs of one sequence [object, frame, H, W], a folder for each object."""
    for number, frames in enumerate(masks):
        folder = root / name / f"{number:03d}"
        folder.mkdir(parents=True)
        for index, mask in enumerate(frames):
            Image.fromarray(255 * mask.astype(np.uint8)).save(folder / f"{index:05d}.png", compress_level=1)


def golden_set(root: Path, golden: Path) -> None:
    for path in sorted(golden.glob("seq*.npz")):
        data = np.load(path)
        for side, key in (("truth", "gt"), ("predicted", "pred")):
            write(root / side, path.stem, data[key])


def large_set(root: Path, num_frames: int = 12) -> None:
    y, x = np.mgrid[:480, :854]
    for sequence in range(3):
        rng = np.random.default_rng(sequence)
        centres, radii = rng.uniform((100, 150), (380, 700), (2, 2)), rng.uniform(40, 130, 2)
        for side, shift in (("truth", 0), ("predicted", 4)):
            masks = np.zeros((2, num_frames, 480, 854), bool)
            for k in range(2):
                for t in range(num_frames):
                    dy, dx = y - centres[k][0] - 2 * t - shift, x - centres[k][1] - 3 * t
                    ragged = 1 + 0.1 * np.sin(12 * np.arctan2(dy, dx)) + 0.03 * rng.standard_normal(y.shape)
                    masks[k, t] = np.hypot(dy, dx) < radii[k] * ragged
            write(root / side, f"made{sequence}", masks)


def ours(root: Path) -> dict[str, float]:
    return score_folders(root / "truth", root / "predicted").mean()


def reference(folder: Path) -> Callable[[Path], dict[str, float]]:
    sys.path.insert(0, str(folder))
    import cv2
    from utils.sav_benchmark import VideoEvaluator

    cv2.setNumThreads(1)

    def run(root: Path) -> dict[str, float]:
        evaluate = VideoEvaluator(str(root / "truth"), str(root / "predicted"), skip_first_and_last=True)
        results = [evaluate(name) for name in sorted(os.listdir(root / "truth"))]
        j, f = (np.mean([value for result in results for value in result[k].values()]) for k in (1, 2))
        return {"J&F": (j + f) / 2, "J": j, "F": f}

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path, default=GOLDEN)
    parser.add_argument("--reference", type=Path, help="folder sav_dataset of facebookresearch/sam2")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    runs = {"ours": ours} | ({"reference": reference(options.reference)} if options.reference else {})
    with tempfile.TemporaryDirectory() as folder:
        sets = {"golden": Path(folder) / "golden", "480 x 854": Path(folder) / "large"}
        golden_set(sets["golden"], options.golden)
        large_set(sets["480 x 854"])
        for name, root in sets.items():
            num_masks = len(list((root / "truth").rglob("*.png")))
            seconds: dict[str, list[float]] = {run: [] for run in runs}
            scores = {}
            for round_number in range(options.rounds + 1):
                for run, score in runs.items():
                    start = time.process_time()
                    scores[run] = score(root)
                    if round_number:
                        seconds[run].append(time.process_time() - start)
            for run, values in seconds.items():
                median = statistics.median(values)
                print(
                    f"{name:10} {run:10} {median:7.3f} s (min {min(values):.3f}), "
                    f"{1000 * median / num_masks:.2f} ms a mask, J&F {scores[run]['J&F']:.6f}"
                )
            if len(seconds) == 2:
                ratio = statistics.median(a / b for a, b in zip(seconds["reference"], seconds["ours"], strict=True))
                print(f"{name:10} the reference takes {ratio:.1f} times as long")


if __name__ == "__main__":
    main()
