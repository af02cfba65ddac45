"""What training through heads costs in conversation: short trainings that differ in one thing.

    python -m tpo_shapes.experiments runs/experiments "as it is" "mllm 4" --seed 1

Each is a shorter stage 1 and 2 of the demo's recipe, for boxes and moments, all on the same batches of records, which
are made once for a seed. Afterwards held-out records are read, teacher-forced: the loss of the words of conversation,
shares of answers that are right, boxes, moments. One JSON object for each is printed, and added to results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import get_cosine_schedule_with_warmup

from tpo_plugin.config import TPOConfig
from tpo_plugin.data import RecordDataset, Records, TPOCollator
from tpo_plugin.training.config import StageConfig, TrainConfig
from tpo_plugin.training.parts import optimizer_groups, set_trainable
from tpo_plugin.training.run import build_model
from tpo_shapes import demo
from tpo_shapes.baselines import without_masks
from tpo_shapes.dataset import write_records
from tpo_shapes.recipe import FULL, SHARDS, TPO, train_config

Batches = list[dict[str, Any]]
Change = Callable[[TrainConfig], None]
BATCH_SIZE, STEPS = 24, {"stage1": 20, "stage2": 200}
RECORDS = ("chat", "tasks", "clip_chat", "clip_tasks")


def _weights(**weights: float) -> Change:
    return lambda config: config.tpo.loss_weights.update(weights)


def _rates(factor: float) -> Change:
    def change(config: TrainConfig) -> None:
        for stage in config.stages.values():
            stage.learning_rates["lora"] *= factor

    return change


def _rank(r: int) -> Change:
    def change(config: TrainConfig) -> None:
        assert config.lora is not None
        config.lora.r, config.lora.alpha = r, 2 * r

    return change


def _mix(factor: float) -> Change:
    def change(config: TrainConfig) -> None:
        for stage in config.stages.values():
            for source in stage.data:
                source.weight *= factor if Path(source.file).name == "clip_chat.jsonl" else 1

    return change


def _given_box_mlp(config: TrainConfig) -> None:
    config.tpo.heads["region"] = {"given_box": "mlp"}


def _frozen(config: TrainConfig) -> None:
    config.lora = None
    for stage in config.stages.values():
        stage.learning_rates.pop("lora")


@dataclass(frozen=True)
class Experiment:
    """What differs from the recipe."""

    change: Change = lambda config: None
    """Of the configuration."""
    batches: str = ""
    """A name for its batches, where the change mixes others."""
    trains: bool = True


EXPERIMENTS = {
    "host": Experiment(trains=False),
    "as it is": Experiment(),
    "no region": Experiment(_weights(region=0.0)),
    "no temporal": Experiment(_weights(temporal=0.0)),
    "no heads": Experiment(_weights(region=0.0, temporal=0.0)),
    "mllm 4": Experiment(_weights(mllm=4.0)),
    "mllm 16": Experiment(_weights(mllm=16.0)),
    "lora rate half": Experiment(_rates(0.5)),
    "lora rank 4": Experiment(_rank(4)),
    "clip chat x 3": Experiment(_mix(3.0), batches="clip-chat-3"),
    "retain 1": Experiment(_weights(retain=1.0)),
    "retain 4": Experiment(_weights(retain=4.0)),
    "given box mlp": Experiment(_given_box_mlp),
    "frozen host": Experiment(_frozen),
}


def configuration(directory: Path, seed: int, name: str) -> TrainConfig:
    """The demo's, with given boxes as waves, without masks and the loss "retain", on one shard; changed."""
    config = train_config(demo.HOST_DIRECTORY, directory, FULL, seed, TPO)
    config.heads.remove("mask")
    config.tpo.heads.pop("mask")
    config.tpo = TPOConfig(loss_weights=config.tpo.loss_weights, heads=config.tpo.heads, supervised_logits=False)
    for stage in config.stages.values():
        stage.data = [source for source in stage.data if SHARDS[0] in source.file]
        for source in stage.data:
            source.file = source.file.replace("tasks.jsonl", "tasks_plain.jsonl")
    config.tpo.loss_weights["retain"] = 0.0
    config.tpo.heads["region"] = {"given_box": "fourier"}
    EXPERIMENTS[name].change(config)
    return config


def make_world(directory: Path, seed: int) -> None:
    """Training and held-out scenes of the demo, and records without masks."""
    for part in (SHARDS[0], "heldout"):
        root = directory / "data" / part
        root.mkdir(parents=True, exist_ok=True)
        demo._make_part(root, FULL, seed)
        for kind in ("tasks", "clip_tasks"):
            lines = (root / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
            write_records(root / f"{kind}_plain.jsonl", [without_masks(json.loads(line)) for line in lines])


# -- batches -----------------------------------------------------------------------------------------------------------


def training_batches(model: Any, stage: StageConfig, config: TrainConfig, steps: int, cache: Path) -> Batches:
    """Those of a stage, made once."""
    if not cache.is_file():
        sources = [Records(source.file, model.tpo) for source in stage.data]
        shares = [source.weight * len(records) for source, records in zip(stage.data, sources, strict=True)]
        number = steps * BATCH_SIZE
        data = RecordDataset(sources, weights=shares, num_samples=number, seed=config.seed, video=config.data.video)
        data.set_epoch(0)
        order = torch.randperm(number, generator=torch.Generator().manual_seed(config.seed)).tolist()
        collate = TPOCollator(model.tpo)
        parts = [order[start : start + BATCH_SIZE] for start in range(0, number, BATCH_SIZE)]
        torch.save([collate([data[index] for index in part]) for part in parts], cache)
    batches: Batches = torch.load(cache, weights_only=False)
    return batches


def heldout_batches(model: Any, directory: Path, config: TrainConfig) -> dict[str, list[tuple[dict[str, Any], Any]]]:
    """By kind of records: batches, and for each the kinds of its questions."""
    cache = directory / "heldout.pt"
    if not cache.is_file():
        found = {}
        for kind in RECORDS:
            file = directory / "data" / "heldout" / f"{kind.replace('tasks', 'tasks_plain')}.jsonl"
            kinds = [json.loads(line)["kinds"] for line in file.read_text(encoding="utf-8").splitlines()]
            data = RecordDataset([Records(str(file), model.tpo)], video=config.data.video)
            collate = TPOCollator(model.tpo)
            starts = range(0, len(data), 50)
            chosen = [range(start, min(start + 50, len(data))) for start in starts]
            found[kind] = [(collate([data[i] for i in part]), [kinds[i] for i in part]) for part in chosen]
        torch.save(found, cache)
    batches: dict[str, list[tuple[dict[str, Any], Any]]] = torch.load(cache, weights_only=False)
    return batches


# -- training ----------------------------------------------------------------------------------------------------------


def train_stage(model: Any, batches: Batches, stage: StageConfig, config: TrainConfig) -> dict[str, Any]:
    """As a stage of `tpo train`; returns the mean losses of the last fifth."""
    rates = set_trainable(model, stage.learning_rates, config.modules)
    weights = {kind: config.tpo.weight(kind) for kind in ("mllm", "assign", "retain", *model.tpo.heads)}
    active = stage.losses or weights
    model.tpo.config.loss_weights = {kind: weight if kind in active else 0.0 for kind, weight in weights.items()}
    optimizer = torch.optim.AdamW(optimizer_groups(model, rates, stage.weight_decay), betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, round(stage.warmup * len(batches)), len(batches))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    log = defaultdict(list)
    model.train()
    for number, batch in enumerate(batches):
        out = model(**batch)
        optimizer.zero_grad()
        out.loss.backward()
        if stage.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trained, stage.max_grad_norm)
        optimizer.step()
        schedule.step()
        if number >= len(batches) * 4 // 5:
            for kind, value in out.tpo.losses.items():
                log[kind].append(float(value.detach()))
    return {kind: sum(values) / len(values) for kind, values in log.items()}


# -- measuring ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(model: Any, heldout: dict[str, list[tuple[dict[str, Any], Any]]]) -> dict[str, Any]:
    """Of conversation about pictures and clips the loss of a word and the share of right answers, by kind and their
    mean; of tasks the heads' metrics, and the share of right answers about given boxes."""
    model.eval()
    end_id = model.tpo.tokenizer.eos_token_id
    found: dict[str, Any] = {}
    for name, batches in heldout.items():
        right, loss, words = defaultdict(list), 0.0, 0
        metrics = {head: module.metrics() for head, module in model.tpo.heads.items()}
        for batch, kinds in batches:
            out = model(**batch)
            for row, (labels, logits) in enumerate(zip(batch["labels"][:, 1:], out.logits[:, :-1], strict=True)):
                known = labels >= 0
                loss += float(F.cross_entropy(logits[known], labels[known], reduction="sum"))
                words += int(known.sum())
                answers = zip(kinds[row], _answers(labels, logits, end_id), strict=True)
                for kind, is_right in answers:
                    right[kind].append(is_right)
            for head, targets in batch.get("task_targets", {}).items():
                metrics[head].update(out.tpo.outputs[head], targets)
        shares = {kind: sum(values) / len(values) for kind, values in right.items()}
        if name.endswith("chat"):
            found[name] = {"right": sum(shares.values()) / len(shares), "loss": loss / words, "kinds": shares}
        else:
            given = [share for kind, share in shares.items() if kind.startswith("given")]
            found[name] = {"given": sum(given) / len(given), **{h: m.compute() for h, m in metrics.items()}}
    return found


def _answers(labels_T: Tensor, logits_TV: Tensor, end_id: int) -> Iterator[bool]:
    """Whether all labelled tokens of each answer, which `end_id` ends, are right."""
    right = (logits_TV.argmax(-1) == labels_T).tolist()
    all_right = True
    for label, is_right in zip(labels_T.tolist(), right, strict=True):
        all_right &= is_right or label < 0
        if label == end_id:
            yield all_right
            all_right = True


def run_experiment(directory: Path, name: str, seed: int) -> dict[str, Any]:
    """Trains as an experiment says, and measures."""
    experiment, config = EXPERIMENTS[name], configuration(directory, seed, name)
    model = build_model(config)
    heldout = heldout_batches(model, directory, config)
    if not experiment.trains:
        return measure(model, heldout)
    started, losses = time.process_time(), {}
    for stage, steps in STEPS.items():
        cache = directory / f"{stage}{experiment.batches}.pt"
        batches = training_batches(model, config.stages[stage], config, steps, cache)
        losses = train_stage(model, batches, config.stages[stage], config)
    return {"cpu_s": round(time.process_time() - started), "losses": losses, **measure(model, heldout)}


def main() -> None:
    """Runs each experiment on each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "experiments", nargs="+", choices=list(EXPERIMENTS), metavar="experiment", help=", ".join(EXPERIMENTS)
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in given.seed:
        world = given.directory / f"seed-{seed}"
        make_world(world, seed)
        for name in given.experiments:
            found = {"seed": seed, "experiment": name, **run_experiment(world, name, seed)}
            with (given.directory / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
