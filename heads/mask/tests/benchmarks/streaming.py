"""Peak memory of tracking through a two-minute 720p video, against a ten-second one, with the micro SAM 2 on the CPU.

    python heads/mask/tests/benchmarks/streaming.py [--objects 2] [--checkpoint micro_sam.safetensors --image-size 96]

Each video (24 frames a second, two moving discs, one of which comes and goes) is tracked in a fresh process, which
reports its peak resident memory as the operating system counts it, and what it held before the first frame. Without a
checkpoint the weights are random: then masks are ragged noise, and their RLE is most of what grows. `tpo demo` leaves
the checkpoint of a trained micro SAM 2, `micro_sam.safetensors`, in the folder of its run.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

HEIGHT, WIDTH, RATE = 720, 1280, 24
SECONDS = {"ten seconds": 10, "two minutes": 120}
FIRST_BOXES = [[0.17, 0.6, 0.3, 0.82], [0.76, 0.39, 0.88, 0.61]]
"""Of the two discs in the first frame, 0 to 1."""


def write_video(path: Path, seconds: int) -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        background = (40 + 30 * np.sin(x / 90) + 20 * np.cos(y / 70)).astype(np.uint8)
        for number in range(seconds * RATE):
            pixels = np.repeat(background[..., None], 3, axis=2)
            t = number / RATE
            discs = [(300 + 200 * np.sin(t), 360 + 150 * np.cos(t / 2)), (900 + 150 * np.cos(t / 3), 360)]
            for index, (cx, cy) in enumerate(discs[: 1 if int(t) % 5 == 4 else 2]):
                pixels[(x - cx) ** 2 + (y - cy) ** 2 < 80**2] = (220, 60 + 120 * index, 40)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(path: str, config: dict[str, Any], num_objects: int) -> dict[str, float]:
    from tpo_head_mask.checkpoints import build_backend
    from tpo_head_mask.config import MaskConfig
    from tpo_head_mask.inputs import Medium
    from tpo_head_mask.streaming import track

    torch.manual_seed(0)
    torch.set_num_threads(1)
    backend = build_backend(MaskConfig(**config))
    boxes = torch.tensor(FIRST_BOXES).repeat(num_objects, 1)[:num_objects]
    with torch.no_grad():
        prompts = backend.embed_boxes(boxes)
    before, start = peak_mb(), time.process_time()
    values = track(backend, Medium(video=path), prompts)
    seconds = time.process_time() - start
    length = sum(len(mask["counts"]) for value in values for mask in value["masks"])
    return {
        "frames": len(values[0]["masks"]),
        "before_mb": before,
        "peak_mb": peak_mb(),
        "rle_mb": length / 2**20,
        "cpu_s": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--checkpoint")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--track", help=argparse.SUPPRESS)
    options = parser.parse_args()
    config = {"backend": options.backend, "checkpoint": options.checkpoint, "image_size": options.image_size}
    if options.track:
        print(json.dumps(measure(options.track, config, options.objects)))
        return
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in SECONDS.items():
            path = Path(folder) / f"{seconds}.mp4"
            write_video(path, seconds)
            command = [sys.executable, __file__, *sys.argv[1:], "--track", str(path)]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            peaks[name] = result["peak_mb"]
            print(
                f"{name}: {result['frames']} frames, peak {result['peak_mb']:.0f} MB ({result['before_mb']:.0f} MB "
                f"before the first frame), of which {result['rle_mb']:.1f} MB RLE; "
                f"{result['cpu_s'] / result['frames'] * 1e3:.0f} ms CPU a frame"
            )
    print(f"peak of two minutes / peak of ten seconds: {peaks['two minutes'] / peaks['ten seconds']:.3f}")


if __name__ == "__main__":
    main()
