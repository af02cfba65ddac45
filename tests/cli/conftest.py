"""A finished run of a tiny LLaVA-OneVision, and media to ask it about."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tpo_shapes.host import build_model, build_processor

from tpo_plugin.training.run import train

RECORD = {
    "image": "picture.png",
    "conversations": [
        {"from": "human", "value": "<image>\nwhere is the red circle?"},
        {"from": "gpt", "value": "it is here <region>"},
    ],
    "tasks": [{"head": "region", "boxes": [[0.1, 0.2, 0.5, 0.6]]}],
}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`host/`, `picture.png` (64 x 48), `clip.mp4` (2 s, ever brighter), `records.jsonl`, and `run/` after one step."""
    folder = tmp_path_factory.mktemp("world")
    processor = build_processor()
    build_model(processor.tokenizer, width=32, num_layers=2).save_pretrained(folder / "host")
    processor.save_pretrained(folder / "host")
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "picture.png")
    _write_clip(folder / "clip.mp4")
    chat = {"conversations": [{"from": "human", "value": "how many?"}, {"from": "gpt", "value": "two"}]}
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (RECORD, RECORD, chat, chat)))
    stage = {
        # not the triggers, which would start where this random host calls them all the time
        "learning_rates": {"lora": 1e-4, "heads": 1e-4, "task_tokens": 1e-4},
        "data": [{"file": str(folder / "records.jsonl")}],
        "steps": 1,
        "batch_size": 1,
        "micro_batch_size": 1,
        "trainer": {"use_cpu": True, "disable_tqdm": True, "report_to": []},
    }
    config = {"model": str(folder / "host"), "output_dir": str(folder / "run"), "heads": ["region"]}
    config |= {"stages": {"only": stage}, "data": {"video": {"num_frames": 2}}}
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    train(folder / "config.yaml")
    return folder


def _write_clip(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(20):
            pixels = np.full((48, 64, 3), 10 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
