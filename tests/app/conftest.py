"""A tiny model with three heads that draw, and one that does not, and media to ask it about."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from registered import registered
from torch import Tensor
from tpo_shapes.host import build_model, build_processor

import tpo_plugin as tpo

MASK = {"backend": "sam2", "size": "micro", "image_size": 96, "losses": ["pixel", "prompt"], "given_box": "adapter"}


class BareHead(tpo.TaskHead):
    """Its value is a number, which it does not draw."""

    def __init__(self, config: tpo.HeadConfig, hidden_size: int) -> None:
        super().__init__()
        self.proj = tpo.Linear(hidden_size, 1)

    def forward(self, e_ND: Tensor) -> dict[str, Tensor]:
        return {"numbers": self.proj(e_ND)}

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Any], num_targets: Tensor | int) -> dict[str, Tensor]:
        return {"loss_bare": (outputs["numbers"] - targets["numbers"]).square().sum() / num_targets}


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    """Of random weights, in evaluation mode."""
    pytest.importorskip("sam2")
    torch.manual_seed(0)
    processor = build_processor()
    host = build_model(processor.tokenizer, width=32, num_layers=2)
    torch.manual_seed(6)  # with which the first moment of its answers begins inside the clip
    with registered("bare", BareHead):
        config = tpo.TPOConfig(heads={"mask": MASK})
        yield tpo.apply_tpo(host, processor, heads=["region", "temporal", "mask", "bare"], config=config).eval()


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`0.png` to `3.png` (64 x 48), `clip.mp4` (2 s, MPEG-4, which browsers do not play), and `records.jsonl`."""
    folder = tmp_path_factory.mktemp("media")
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 120, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(20):
            pixels = np.full((48, 64, 3), 10 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    box = [0.1, 0.2, 0.5, 0.6]
    records = [
        ("image", "0.png", "where is the red circle?", "it is here <region>", [{"head": "region", "boxes": [box]}]),
        ("image", "1.png", "what shape is the object in <region>?", "circle", [{"head": "region", "boxes": [box]}]),
        ("video", "clip.mp4", "when does it leave?", "at <temporal>", [{"head": "temporal", "spans": [[0.5, 1.0]]}]),
        ("image", "missing.png", "how many?", "two", []),
        ("image", "2.png", "is there a red circle?", "yes", []),
    ]
    lines = [
        {
            kind: name,
            "conversations": [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": said}],
            "tasks": tasks,
        }
        for kind, name, asked, said, tasks in records
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
