"""The configurations of examples/llava_onevision at tiny size.

As a script it is one rank under DeepSpeed or FSDP on the CPU: `python onevision.py NAME FOLDER`, with the world in
FOLDER.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from ranks import use_deepspeed, use_fsdp

from tpo_plugin import VideoOptions
from tpo_plugin.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "llava_onevision"
BOX = {"head": "region", "boxes": [[0.1, 0.2, 0.5, 0.6]]}
MOMENT = {"head": "temporal", "spans": [[0.5, 1.5]]}


def make_world(folder: Path) -> None:
    """A tiny LLaVA-OneVision in `host/`, and records with their media in `data/`, by the names of the example."""
    from tpo_shapes.host import build_model, build_processor

    processor = build_processor()
    build_model(processor.tokenizer, width=32, num_layers=2).save_pretrained(folder / "host")
    processor.save_pretrained(folder / "host")
    data = folder / "data"
    data.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data / "picture.png")
    with av.open(str(data / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(20):
            frame = np.full((48, 64, 3), 10 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    _write(data / "boxes.jsonl", {"image": "picture.png"}, "<image>\nwhere is the red circle?", "it is <region>", [BOX])
    _write(data / "moments.jsonl", {"video": "clip.mp4"}, "<video>\nwhen does it turn?", "at <temporal>", [MOMENT])
    _write(data / "chat.jsonl", {"image": "picture.png"}, "<image>\nhow many objects are there?", "three", [])


def _write(path: Path, media: dict[str, str], question: str, answer: str, tasks: list[dict[str, Any]]) -> None:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    record = media | {"conversations": turns, "tasks": tasks}
    path.write_text(f"{json.dumps(record)}\n" * 4)


def tiny(name: str, **trainer: Any) -> TrainConfig:
    """A configuration of the example with the hardware switched off: the tiny host, one step a stage, float32."""
    config = TrainConfig.from_yaml(EXAMPLE / name)
    config.model, config.output_dir, config.dtype = "host", "run", "float32"
    config.data.num_workers, config.data.video = 0, VideoOptions(num_frames=2)
    for stage in config.stages.values():
        stage.steps, stage.batch_size, stage.warmup, stage.logging_steps = 1, 4, 0.0, 1
        stage.trainer |= {"report_to": [], "disable_tqdm": True, **trainer}
        if "deepspeed" in stage.trainer:
            stage.trainer["deepspeed"] = str(ROOT / stage.trainer["deepspeed"])
    return config


def main(name: str, folder: str) -> None:
    from tpo_plugin.training.run import train

    os.chdir(folder)
    if "fsdp" in name:
        use_fsdp()
        train(tiny(name, use_cpu=False, dataloader_pin_memory=False))
    else:
        use_deepspeed()
        train(tiny(name))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
