"""Each engine beside one process: are losses and parameters the same, how long is a step, how much memory it takes.

    python -m tests.benchmarks.engines [--steps 200] [--ranks 2 3]

Two kinds of batches. "tasks": the first rank has boxes to learn and the others conversation alone. "pictures": the
same, and only the first rank's records have pictures, so that the vision tower runs idle on the others. All of a tiny
LLaVA-OneVision is trained, with SGD, in float32, each rank a process of its own on the CPU with gloo between them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks import TRIES_FSDP, forked, use_deepspeed, use_fsdp

from tpo_plugin import apply_tpo, sharding, wrap_trainer
from tpo_plugin.data import RecordDataset, Records, TPOCollator

KINDS = {"tasks": ("boxes", "chat"), "pictures": ("pictures", "chat")}
"""Records of the first rank, and of the others."""
ENGINES = ("one process", "accumulation", "DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "FSDP2")
SIZE = 2
"""Rows of a rank's batch."""
TOLERANCE = 1e-5


def engines() -> list[str]:
    """Those that are installed."""
    missing = () if find_spec("deepspeed") else ("ZeRO",)
    missing += () if TRIES_FSDP else ("FSDP2",)
    return [name for name in ENGINES if not name.startswith(missing or "-")]


def make_world(folder: Path) -> None:
    """A tiny LLaVA-OneVision in `host/`, and records with and without boxes and pictures."""
    from tpo_shapes.host import build_model, build_processor

    processor = build_processor()
    build_model(processor.tokenizer, width=32, num_layers=2).save_pretrained(folder / "host")
    processor.save_pretrained(folder / "host")
    draw = np.random.default_rng(0)
    records: dict[str, list[dict[str, Any]]] = {"boxes": [], "pictures": [], "chat": []}
    for index in range(8):
        Image.fromarray(draw.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        colour, number = ("red", "blue", "green")[index % 3], ("one", "two", "three", "four")[index % 4]
        boxes = [[0.1, 0.1 + index / 20, 0.6, 0.7]]
        turns = _turns(f"where is the {colour} circle ?", f"it is {number} <region>")
        record = {"conversations": turns, "tasks": [{"head": "region", "boxes": boxes}]}
        records["boxes"].append(record)
        turns = _turns(f"<image>\nwhere is the {colour} circle ?", f"it is {number} <region>")
        records["pictures"].append(record | {"image": f"{index}.png", "conversations": turns})
        records["chat"].append({"conversations": _turns(f"how many {colour} objects are there ?", number)})
    for name, lines in records.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def samples(folder: Path, tpo: Any, case: str, ranks: int, steps: int) -> list[Any]:
    """In their order, for each step SIZE of each rank."""
    draw = np.random.default_rng(1)
    kinds = [KINDS[case][min(rank, 1)] for rank in range(ranks)]
    read = {kind: RecordDataset([Records(folder / f"{kind}.jsonl", tpo)]) for kind in set(kinds)}
    read_once = {kind: [dataset[i] for i in range(len(dataset))] for kind, dataset in read.items()}
    return [read_once[kind][i] for _ in range(steps) for kind in kinds for i in draw.integers(0, 8, SIZE)]


def arguments(engine: str, ranks: int, folder: Path, steps: int, **changes: Any) -> transformers.TrainingArguments:
    """Of a trainer on this engine, whose global batch is the same on each."""
    values: dict[str, Any] = {
        "output_dir": str(folder / "out"), "max_steps": steps, "per_device_train_batch_size": SIZE, "logging_steps": 1,
        "learning_rate": 0.01, "optim": "sgd", "lr_scheduler_type": "constant", "save_strategy": "no", "seed": 3,
        "report_to": [], "use_cpu": True, "remove_unused_columns": False, "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    if engine == "one process":
        values["per_device_train_batch_size"] = SIZE * ranks
    elif engine == "accumulation":
        values["gradient_accumulation_steps"] = ranks
    elif engine.startswith("ZeRO"):
        stage = int(engine[-1])
        values |= {"use_cpu": False, "deepspeed": {
            "zero_optimization": {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {}),
            "zero_allow_untested_optimizer": True, "gradient_clipping": "auto",
            "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
        }}  # fmt: skip
    elif engine == "FSDP2":
        fsdp = {"version": 2, "transformer_layer_cls_to_wrap": ["Qwen2DecoderLayer", "SiglipEncoderLayer"]}
        values |= {"use_cpu": False, "fsdp": True, "fsdp_config": fsdp}
    return transformers.TrainingArguments(**values | changes)


class InOrder(wrap_trainer(transformers.Trainer)):  # type: ignore[misc]
    """Takes samples as they come, so that each rank gets those that are meant for it."""

    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


Prepare = Callable[[Any], Any]
"""Changes a model with TPO before its trainer is made."""


def make_trainer(
    engine: str, ranks: int, case: str, folder: Path, steps: int, prepare: Prepare = lambda model: model, **changes: Any
) -> Any:
    """The trainer of this rank."""
    if engine.startswith("ZeRO"):
        use_deepspeed()
    if engine == "FSDP2":
        use_fsdp()
    tpo, questions = changes.pop("tpo", None), changes.pop("eval_generations", 0)
    args = arguments(engine, ranks, folder, steps, **changes)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder / "host")
    processor = transformers.AutoProcessor.from_pretrained(folder / "host")
    torch.manual_seed(0)
    model = prepare(apply_tpo(model, processor, heads=["region"], config=tpo))
    order = samples(folder, model.tpo, case, ranks, steps)
    trainer = InOrder(model=model, args=args, train_dataset=order, data_collator=TPOCollator(model.tpo))
    trainer.eval_generations = questions
    return trainer


def parameters(trainer: Any) -> dict[str, torch.Tensor]:
    """All of the model, whole. Collective."""
    sharding.at_rest(trainer.model)
    return sharding.whole(dict(trainer.model.named_parameters()))


def train(engine: str, ranks: int, case: str, folder: Path, steps: int, **options: Any) -> None:
    """What one rank does; the first one writes `result.pt`."""
    trainer = make_trainer(engine, ranks, case, folder, steps, **options)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    result = {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "seconds": seconds / steps,
        "peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "parameters": parameters(trainer),
    }
    if trainer.is_world_process_zero():
        torch.save(result, folder / "result.pt")


def run(engine: str, ranks: int, case: str, world: Path, steps: int, **options: Any) -> dict[str, Any]:
    """Trains on an engine, in processes of its own; the first rank's result."""
    number = 1 if engine in ("one process", "accumulation") else ranks
    (world / "result.pt").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as logs:
        forked(lambda: train(engine, ranks, case, world, steps, **options), Path(logs), number)
    return torch.load(world / "result.pt", weights_only=True)  # type: ignore[no-any-return]


def apart(result: dict[str, Any], expected: dict[str, Any]) -> tuple[float, float]:
    """The largest difference of a step's loss, relative, and of a parameter."""
    losses, wanted = (torch.tensor(run["losses"], dtype=torch.float64) for run in (result, expected))
    assert len(losses) == len(wanted)
    given = result["parameters"]
    assert given.keys() == expected["parameters"].keys()
    return (
        float(((losses - wanted) / wanted).abs().max()),
        max(float((given[name] - value).abs().max()) for name, value in expected["parameters"].items()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--engines", nargs="+", choices=ENGINES[1:], default=engines()[1:])
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("batches", "ranks", "engine", "loss equal", "parameters equal", "ms a step", "peak MiB of a rank",
                  title=f"{options.steps} steps; the largest difference from one process")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        world = Path(name)
        make_world(world)
        for case in KINDS:
            for ranks in options.ranks:
                expected: dict[str, Any] = {}
                for engine in (ENGINES[0], *options.engines):
                    result = run(engine, ranks, case, world, options.steps)
                    expected = expected or result
                    found = [f"{'yes' if d <= TOLERANCE else 'NO'} ({d:.0e})" for d in apart(result, expected)]
                    numbers = f"{1000 * result['seconds']:.0f}", f"{result['peak_mib']:.0f}"
                    table.add_row(case, str(ranks), engine, *found, *numbers)
                    print(case, ranks, engine, *found, *numbers, file=sys.stderr, flush=True)
    Console(width=120).print(table)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
