"""What a trainer trained under `tpo run`, computed again, slowly and plainly, in a fresh process.

`python -m tests.trainers.check HOST [OUTPUT RECORD ...]`, in the environment of the trainer, prints the
results as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

import tpo_plugin as tpo


def main(host: Path, output: Path, record_folder: Path) -> dict[str, Any]:
    """Compares."""
    record = torch.load(record_folder / "record.pt", weights_only=False)
    steps = [step for step in record["steps"] if step["step"] == 0]
    model = at_start(host, record_folder / "start")
    expected = losses_of(model, steps)
    log = next(entry for entry in record["log"] if "loss" in entry)
    trained = float(sum(step["loss"] for step in steps))
    loaded = load(output, host)
    with torch.no_grad():
        loaded(**{k: v for k, v in record["last"]["inputs"].items() if k != "labels"})
    boxes = loaded.tpo.last_output.outputs["region"]["boxes_xyxy"]
    return {
        "trainer": record["class"],
        "boxes": sorted(box for step in steps for box in step["boxes"].tolist()),
        "tokens": sum(int((step["inputs"]["input_ids"] == model.tpo.token_ids["region"][1]).sum()) for step in steps),
        "micro_batches": len(steps),
        "expected": expected,
        "trained": trained,
        "logged": {name: log.get(name) for name in ("loss", "loss_mllm", "loss_assign", "loss_region", "grad_norm")},
        "moved": float((boxes - first_boxes(model, record["last"])).abs().max()),
        "reloaded": float((boxes - record["boxes"]).abs().max()),
    }


def host_class(folder: Path) -> Any:
    config = AutoConfig.from_pretrained(folder)
    return getattr(transformers, (config.architectures or ["Qwen2ForCausalLM"])[0])


def at_start(host: Path, start: Path) -> Any:
    """The host with TPO as they were before the first step."""
    model = host_class(host).from_pretrained(host, torch_dtype=torch.float32)
    state = torch.load(start / "host.pt", weights_only=True)
    tpo.load_tpo(model, start, AutoTokenizer.from_pretrained(host))
    own = model.state_dict()
    model.load_state_dict(
        {name.replace(".base_layer.", "."): v for name, v in state.items() if name.replace(".base_layer.", ".") in own},
        strict=False,
    )
    return model.eval()


def load(output: Path, host: Path) -> Any:
    """What the trainer saved: a whole host, or an adapter."""
    saved = [output, *sorted(output.glob("checkpoint-*"), reverse=True)]  # ms-swift has no model beside its checkpoints
    source = next((folder for folder in saved if (folder / "config.json").is_file()), host)
    model = host_class(host).from_pretrained(source, torch_dtype=torch.float32)
    return tpo.load_tpo(model, output, AutoTokenizer.from_pretrained(host)).eval()


def first_boxes(model: Any, step: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        model(**{k: v for k, v in step["inputs"].items() if k != "labels"})
    return model.tpo.last_output.outputs["region"]["boxes_xyxy"]


def losses_of(model: Any, steps: list[dict[str, Any]]) -> dict[str, float]:
    """Each loss as a mean over all of its targets in the step, one target after the other."""
    trigger, task = model.tpo.token_ids["region"]
    sums, numbers = dict.fromkeys(("mllm", "assign", "region"), 0.0), dict.fromkeys(("mllm", "assign", "region"), 0)
    for step in steps:
        inputs = {k: v for k, v in step["inputs"].items() if k != "labels"}
        with torch.no_grad():
            logits = model(**inputs).logits.double().log_softmax(-1)
        labels = step["inputs"]["labels"]
        for row, column in (labels[:, 1:] != -100).nonzero().tolist():
            label = int(labels[row, column + 1])
            kind = "assign" if label == trigger else "mllm"
            assert label != task
            sums[kind] -= float(logits[row, column, label])
            numbers[kind] += 1
        predicted = model.tpo.last_output.outputs["region"]["boxes_xyxy"].tolist() if len(step["boxes"]) else []
        for given, true in zip(predicted, step["boxes"].tolist(), strict=True):
            sums["region"] += box_loss(given, true)
            numbers["region"] += 1
    return {kind: sums[kind] / numbers[kind] for kind in sums}


def box_loss(a: list[float], b: list[float]) -> float:
    """2 x the mean of |difference| + (1 - GIoU) / 5."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(0.0, x2 - x1) * max(0.0, y2 - y1)

    both = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - both
    hull = area(min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    assert a[0] < a[2]
    assert a[1] < a[3]
    return 2 * sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 4 + (1 - both / union + (hull - union) / hull) / 5


if __name__ == "__main__":
    host, *folders = sys.argv[1:]
    results = [
        main(Path(host), Path(output), Path(record)) for output, record in zip(folders[::2], folders[1::2], strict=True)
    ]
    print("CHECK " + json.dumps(results))
