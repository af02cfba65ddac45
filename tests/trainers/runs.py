"""Runs a case with and without accumulation, and says what came of it."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.trainers.cases import ROOT, Case, Run
from tests.trainers.world_data import ANSWERS

BOXES = sorted(box for _, boxes in ANSWERS for box in boxes)
KINDS = ("mllm", "assign", "region")
LOGGED = ("loss", "grad_norm", "loss_mllm", "loss_assign", "loss_region")
SECONDS = 1500
"""A training that takes longer is stopped: axolotl alone needs minutes to start."""


@dataclass
class Result:
    """What was seen of one trainer."""

    tasks: bool
    """Whether every box of the data was trained, once an epoch."""
    loss: bool
    """Whether each loss of the first step is that of the slow computation, and their sum is what was trained."""
    accumulation: bool
    """Whether four micro-batches of one row give the losses and gradients of one micro-batch of four."""
    saved: bool
    """Whether TPO is beside the saved model and in each checkpoint."""
    loaded: bool
    """Whether a fresh process predicts from the files what the training process did, and not what it did before."""
    numbers: dict[str, Any]

    def cells(self) -> list[str]:
        """For the table."""
        seen = (self.tasks, self.loss, self.accumulation, self.saved, self.loaded)
        return ["yes" if value else "NO" for value in seen]


def run_case(case: Case, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Trains twice, and gives the cells of the table and the numbers behind them.

    A trainer that is to be refused is started once. Raises `RuntimeError` with the end of the output where something
    fails.
    """
    world = folder / "world"
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"),
        "HF_HOME": str(folder), "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false", **case.variables,
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    if not world.is_dir():
        start([case.bin / "python", "-m", "tests.trainers.world", world], environment)
    versions = [version_of(case), version_of(case, "transformers")]
    if case.refused:
        return [*versions, *_refused(case, folder, world, environment)], {}
    trained = [path for sizes in ((4, 1), (1, 4)) for path in _train(case, folder, world, environment, *sizes)]
    check = [case.bin / "python", "-m", "tests.trainers.check", world / case.host, *trained]
    text = start(check, environment)
    one, four = json.loads(next(line for line in text.splitlines() if line.startswith("CHECK "))[6:])
    result = compare(one, four, folder / "4x1")
    return [*versions, *result.cells()], result.numbers


def version_of(case: Case, package: str = "") -> str:
    """Of a package, by default that of the trainer; without one the commit of its repository."""
    if not (package or case.package):
        return start(["git", "describe", "--always"], dict(os.environ), folder=case.folder).strip()
    code = f"from importlib.metadata import version; print(version({package or case.package!r}))"
    return start([case.bin / "python", "-c", code], dict(os.environ)).split()[-1]


def _refused(case: Case, folder: Path, world: Path, environment: dict[str, str]) -> list[str]:
    try:
        _train(case, folder, world, environment, 4, 1)
    except RuntimeError as error:
        if case.refused in str(error):
            return ["refused", "-", "-", "-", "-"]
        raise
    return ["NOT REFUSED", "-", "-", "-", "-"]


def compare(one: dict[str, Any], four: dict[str, Any], output: Path) -> Result:
    """What `tests.trainers.check` found for one micro-batch of four, with its output, and four of one."""
    losses = [one["expected"], *(_parts(result["logged"]) for result in (one, four))]
    sums = [sum(losses[0].values()), one["trained"], one["logged"]["loss"]]
    checkpoints = sorted(output.glob("checkpoint-*"))
    return Result(
        tasks=one["boxes"] == four["boxes"] == near(BOXES) and one["tokens"] == four["tokens"] == len(BOXES),
        loss=all(_equal(losses[0][k], losses[1][k]) for k in KINDS) and all(_equal(sums[0], s) for s in sums),
        accumulation=four["micro_batches"] == 4 and all(
            _equal(one["logged"][name], four["logged"][name]) for name in LOGGED
        ),
        saved=len(checkpoints) == 2 and all(has_tpo(place) for place in (output, *checkpoints)),
        loaded=one["reloaded"] < 1e-5 and one["moved"] > 1e-4,
        numbers={"4x1": one, "1x4": four},
    )  # fmt: skip


def has_tpo(place: Path) -> bool:
    """Whether TPO is in a folder, or in a file of Lightning."""
    if place.is_dir():
        return (place / "tpo_model.safetensors").is_file()
    import torch

    return any(".tpo.heads.region." in name for name in torch.load(place, weights_only=True)["state_dict"])


def near(boxes: list[list[float]]) -> list[list[float]]:
    """In the precision of a tensor."""
    import torch

    return torch.tensor(boxes).tolist()


def _train(
    case: Case, folder: Path, world: Path, environment: dict[str, str], batch: int, accumulation: int
) -> tuple[Path, Path]:
    """Where the trainer wrote to, and the recorder."""
    output, record = (folder / f"{prefix}{batch}x{accumulation}" for prefix in ("", "record-"))
    record.mkdir(parents=True, exist_ok=True)
    run = Run(world, output, batch, accumulation, case.bin)
    output.mkdir(parents=True, exist_ok=True)
    for name, content in case.files(run).items():
        (output / name).write_text(json.dumps(content))
    paths = [str(Path(__file__).parent / "recorder"), *filter(None, [case.variables.get("PYTHONPATH")])]
    recording = {"TPO_RECORD": str(record), "PYTHONPATH": os.pathsep.join(paths)}
    path = f"{case.bin}{os.pathsep}{environment['PATH']}"
    start(
        [run.tool("tpo"), "run", "--heads", "region", "--", *case.command(run)],
        environment | recording | {"PATH": path},
        output.with_suffix(".log"),
        case.folder,
    )
    return output, record


def start(command: list[Any], environment: dict[str, str], log: Path | None = None, folder: Path = ROOT) -> str:
    """Standard output of a command. Raises `RuntimeError` where it fails."""
    result = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if log is not None:
        log.write_text(result.stdout + result.stderr)
    if result.returncode:
        raise RuntimeError(
            f"{' '.join(map(str, command))} ended with {result.returncode}:\n{(result.stdout + result.stderr)[-4000:]}"
        )
    return result.stdout


def _parts(logged: dict[str, float]) -> dict[str, float]:
    return {kind: logged[f"loss_{kind}"] for kind in KINDS}


def _equal(a: float, b: float) -> bool:
    return abs(a - b) <= 2e-4 * max(abs(a), abs(b))  # logs of transformers have four digits behind the point
