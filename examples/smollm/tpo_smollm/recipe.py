"""The configurations of `tpo train`: the host's conversations, and the three runs that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpo_plugin.config import TPOConfig
from tpo_plugin.training.config import DataSource, LoraSettings, StageConfig, TrainConfig
from tpo_smollm.sizes import Size

TPO, TEXT, FROZEN, HOST = "TPO", "boxes as text", "frozen host", "host before TPO"
FOLDERS = {TPO: "tpo", TEXT: "text", FROZEN: "frozen"}
FORM = {TPO: "tpo", TEXT: "text", FROZEN: "bare"}
"""Of the records of `records.FORMS`, those that a run takes."""
LOSS_WEIGHTS = {TPO: {"region": 5.0, "retain": 4.0}, TEXT: {"retain": 4.0}, FROZEN: {"region": 5.0}}
MIX = {"mixed": 6.0, "chat": 2.0, "general": 2.0}
"""Of ten records of a stage that is about everything."""
GENERAL = "general.jsonl"
LORA = LoraSettings()


def host_config(start: Path, data: Path, output: Path, size: Size) -> TrainConfig:
    """Conversations alone, by LoRA and connector: descriptions, questions, and the language model's own answers."""
    files = {data / "describe.jsonl": 8.0, data / GENERAL: 1.0}
    stage = _stage(size, files, size.chat_steps, {"lora": 1e-3, "connector": 5e-4}, losses=["mllm"], batch=size.batch)
    return _config(start, output, TPOConfig(), {"chat": stage}, seed=0)


def train_config(name: str, host: Path, data: Path, look: Path, output: Path, size: Size, seed: int) -> TrainConfig:
    """The three stages of `TPO` and, on the same pictures and questions, of `TEXT`; or the one stage of `FROZEN`.

    Where boxes are text, the second stage trains on their words alone, as TPO's does on the region loss. `look` has the
    records that the log's evaluations are about.
    """
    form = FORM[name]
    names = {"mixed": f"mixed_{form}.jsonl", "chat": "chat.jsonl", "general": GENERAL}
    mix = {data / names[kind]: share for kind, share in MIX.items()}
    looked = [] if name == TEXT else [look / f"mixed_{form}.jsonl"]
    tpo = TPOConfig(loss_weights=LOSS_WEIGHTS[name])
    if name == FROZEN:
        rates = {"heads": 5e-3, "tokens": 5e-3}
        stage = _stage(size, mix, size.frozen_steps, rates, batch=size.batch, looked=looked)
        return _config(host, output, tpo, {"frozen": stage}, seed, lora=None)

    def rates_of(rate: float, **rates: float) -> dict[str, float]:
        return {"lora": rate} if name == TEXT else {"lora": rate, **rates}

    lists = {data / f"lists_{form}.jsonl": 1.0}
    alone = ["mllm"] if name == TEXT else ["region"]
    words = ["mllm", "retain"] if name == TEXT else ["mllm", "assign", "retain"]
    first, second, third = size.steps
    stages = {
        "stage1": _stage(size, mix, first, rates_of(1e-3, triggers=2e-3), losses=words, looked=looked),
        "stage2": _stage(size, lists, second, rates_of(1e-3, heads=1e-3, tokens=1e-3), losses=alone, batch=size.lists),
        "stage3": _stage(size, mix, third, rates_of(7e-4, heads=7e-4, tokens=7e-4), looked=looked),
    }
    return _config(host, output, tpo, stages, seed)


def _stage(
    size: Size,
    files: Mapping[Path, float],
    steps: int,
    rates: dict[str, float],
    *,
    losses: list[str] | None = None,
    batch: int | None = None,
    looked: list[Path] | None = None,
) -> StageConfig:
    """`files` are mixed by their shares of the records, however many each has."""
    batch = batch or size.batch
    counts = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    most = max(counts[file] / share for file, share in files.items())
    return StageConfig(
        learning_rates=rates,
        losses=losses,
        data=[DataSource(file=str(file), weight=share * most / counts[file]) for file, share in files.items()],
        eval_data=[DataSource(file=str(file)) for file in looked or []],
        eval_steps=size.eval_steps,
        steps=steps,
        batch_size=batch,
        micro_batch_size=batch,
        warmup=0.1,
        save_steps=25,
        logging_steps=5,
        trainer={"disable_tqdm": True, "adam_beta2": 0.98},
    )


def _config(
    host: Path, output: Path, tpo: TPOConfig, stages: dict[str, Any], seed: int, lora: LoraSettings | None = LORA
) -> TrainConfig:
    return TrainConfig(
        model=str(host),
        output_dir=str(output),
        heads=["region"],
        tpo=tpo,
        lora=lora,
        seed=seed,
        report_to=[],
        stages=stages,
    )
