"""A region head's IoU as the reward: a model that draws good boxes and seldom calls for one learns when to, by GRPO.

    python examples/grpo/train.py --seed 0

Needs `tpo-example-shapes` (examples/shapes), whose pictures and host it takes, and TRL. README.md has what came out.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset, Features, Image, List, Value
from torch.utils.data import DataLoader
from tpo_shapes.dataset import make_dataset, write_records
from tpo_shapes.demo import HOST_DIRECTORY
from tpo_shapes.evaluate import Question, answer_questions, read_questions, score
from trl import GRPOConfig, GRPOTrainer

from tpo_plugin import HeadReward, TPOConfig
from tpo_plugin.data import RecordDataset, Records, TPOCollator, prompt_record, read_sample
from tpo_plugin.training.config import DataSource, StageConfig, TrainConfig
from tpo_plugin.training.run import load_run, train

ASKED = ("region", "colour", "shape", "count", "exists", "side", "size")
"""Kinds of question: the first wants a box."""


def make_records(folder: Path, split: str, num_scenes: int, seed: int) -> dict[str, Path]:
    """Pictures, and records of conversation ("chat") and of boxes ("tasks") about them."""
    files = make_dataset(folder, split, num_scenes, seed)
    for path in files.values():
        write_records(path, [without_masks(json.loads(line)) for line in path.read_text().splitlines()])
    return files


def without_masks(record: dict[str, Any]) -> dict[str, Any]:
    """A record of `tpo_shapes` without the questions that want a mask."""
    turns = list(zip(record["kinds"], record["conversations"][::2], record["conversations"][1::2], strict=True))
    kept = [(kind, human, gpt) for kind, human, gpt in turns if kind != "outline"]
    said = [{**line, "value": line["value"].removeprefix("<image>\n")} for _, *pair in kept for line in pair]
    if said:
        said[0]["value"] = "<image>\n" + said[0]["value"]
    tasks = [task for task in record.get("tasks", []) if task["head"] != "mask"]
    return record | {"kinds": [kind for kind, *_ in kept], "conversations": said, "tasks": tasks}


def supervised(output: Path, files: dict[str, Path], steps: tuple[int, int], seed: int) -> Any:
    """A model whose boxes are good and which rarely calls for one: its triggers learned for a few steps only."""
    data = [DataSource(file=str(path)) for path in files.values()]
    common: dict[str, Any] = {
        "data": data, "batch_size": 48, "micro_batch_size": 48, "warmup": 0.1,
        "trainer": {"disable_tqdm": True, "report_to": "none", "adam_beta2": 0.98},
    }  # fmt: skip
    boxes = {"lora": 3e-3, "heads": 3e-3, "task_tokens": 3e-3}
    config = TrainConfig(
        model=str(HOST_DIRECTORY),
        output_dir=str(output),
        heads=["region"],
        tpo=TPOConfig(loss_weights={"region": 5.0}),
        seed=seed,
        stages={
            "boxes": StageConfig(learning_rates=boxes, losses=["mllm", "region"], steps=steps[0], **common),
            "calls": StageConfig(
                learning_rates={"triggers": 1e-2},
                losses=["assign"],
                steps=steps[1],
                scheduler="constant",
                **{**common, "warmup": 0.0},
            ),
        },
    )
    if not (output / "run.json").is_file():
        train(config)
    return load_run(output)


def tasks_of(question: Question) -> list[dict[str, Any]]:
    """The tasks of the record of one question."""
    return [{"head": "region", "boxes": [question.box]}] if question.box else []


def rows(questions: list[Question], number: int, seed: int) -> Dataset:
    """What GRPOTrainer takes, half of it about boxes: the prompt, the picture, and the tasks of the record."""
    random.Random(seed).shuffle(questions)
    boxes = [q for q in questions if q.kind == "region"][: number // 2]
    chat = [q for q in questions if q.kind in ASKED[1:]][: number - len(boxes)]
    task = {"head": Value("string"), "boxes": List(List(Value("float32")))}
    message = {"role": Value("string"), "content": Value("string")}
    features = Features({"prompt": List(message), "image": Image(), "tasks": List(task)})
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": q.text}],
                "image": q.media,
                "tasks": tasks_of(q),
            }
            for q in boxes + chat
        ],
        features=features,
    )


class BesideRecords(GRPOTrainer):
    """GRPO, and in each micro-batch the supervised losses of TPO on a batch of records beside it."""

    batches: Iterator[dict[str, Any]]
    weight: float

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if not self.model.training:
            return loss
        beside = model(**send_to_device(next(self.batches), self.args.device)).loss
        return loss + self.weight * beside / self.current_gradient_accumulation_steps


def endless(model: Any, files: Iterable[Path], batch_size: int, seed: int) -> Iterator[dict[str, Any]]:
    """Batches of records for `BesideRecords`, in a new order every time round."""
    dataset = RecordDataset([Records(path, model.tpo) for path in files])
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(dataset, batch_size, shuffle=True, collate_fn=TPOCollator(model.tpo), generator=generator)
    while True:
        yield from loader


def reinforce(
    model: Any,
    dataset: Dataset,
    output: Path,
    steps: int,
    seed: int,
    *,
    batch_size: int = 64,
    beside: Iterator[dict[str, Any]] | None = None,
    weight: float = 0.0,
) -> list[float]:
    """GRPO with the box's IoU as the reward; the mean reward of each step.

    Without `beside` the triggers' output rows train alone: whatever else of the language model moves takes the states
    away that the head reads. With it LoRA, heads and task tokens train too.
    """
    for name, parameter in model.named_parameters():
        more = beside is not None and ("lora" in name or name in tpo_names(model))
        parameter.requires_grad_(more or name.endswith(".output"))
    arguments = GRPOConfig(
        str(output), max_steps=steps, per_device_train_batch_size=batch_size, num_generations=8,
        max_completion_length=10, learning_rate=1e-2 if beside is None else 3e-4, lr_scheduler_type="constant",
        logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        bf16=False, gradient_checkpointing=False, seed=seed,
    )  # fmt: skip
    trainer = (GRPOTrainer if beside is None else BesideRecords)(
        model,
        reward_funcs=[HeadReward(model, "region", "mean_iou")],
        args=arguments,
        train_dataset=dataset,
        processing_class=model.tpo.processor,
    )
    if isinstance(trainer, BesideRecords) and beside is not None:
        trainer.batches, trainer.weight = beside, weight
    trainer.train()
    return [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]


def tpo_names(model: Any) -> set[str]:
    """Names of what TPO trains, as the model has them."""
    trains = {id(p) for name, p in model.tpo.named_parameters() if name in model.tpo.trainable}
    return {name for name, p in model.named_parameters() if id(p) in trains}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/grpo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--steps", type=int, nargs=3, default=(400, 8, 40), help="boxes, calls, GRPO")
    parser.add_argument("--beside", type=float, default=0.0, help="weight of the supervised losses beside the reward")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    files = make_records(given.output / "train", "train", given.scenes, 1000 * given.seed)
    held_out = make_records(given.output / "heldout", "heldout", 200, 1000 * given.seed + 500)
    model = supervised(given.output / "supervised", files, tuple(given.steps[:2]), given.seed)
    asked = [q for q in read_questions(held_out.values()) if q.kind in ASKED]
    print("before", measured(model, asked), flush=True)
    train_rows = rows(read_questions(files.values()), 2000, given.seed)
    beside = endless(model, files.values(), 16, given.seed) if given.beside else None
    output, steps = given.output / "grpo", given.steps[2]
    rewards = reinforce(model, train_rows, output, steps, given.seed, beside=beside, weight=given.beside)
    print("rewards", [round(mean(rewards[i : i + 10]), 3) for i in range(0, len(rewards), 10)])
    print("after", measured(model, asked))
    model.save_pretrained(given.output / "grpo")
    model.tpo.save_pretrained(given.output / "grpo")


def measured(model: Any, questions: list[Question], num_sampled: int = 200) -> dict[str, float]:
    """Of held-out questions: the mean reward and calls of sampled answers, and the scores of greedy ones."""
    model.eval()
    reward, found = HeadReward(model, "region", "mean_iou"), {}
    collate, end = TPOCollator(model.tpo, for_generation=True), model.tpo.tokenizer.eos_token_id
    kinds = {"boxes": [q for q in questions if q.box], "chat": [q for q in questions if not q.box]}
    torch.manual_seed(0)
    for kind, asked in kinds.items():
        some = asked[:: max(1, len(asked) // num_sampled)][:num_sampled]
        samples = [read_sample(prompt_record(model.tpo, q.text, images=[q.media])) for q in some]
        answers = model.tpo.generate(**collate(samples), do_sample=True, top_k=0, max_new_tokens=10)
        said = answers.sequences[:, answers.prompt_length :].tolist()
        said = [ids[: ids.index(end) + 1] if end in ids else ids for ids in said]
        rewards = reward(completion_ids=said, tasks=[tasks_of(q) for q in some])
        found |= {f"{kind}: reward": mean(rewards), f"{kind}: called": mean(map(bool, answers.predictions))}
    greedy = score(questions, answer_questions(model, questions))["images"]
    found |= {f"greedy: {name}": greedy[name] for name in ("box_when_asked", "box_otherwise", "mean_iou", "chat")}
    return {name: round(value, 3) for name, value in found.items()}


if __name__ == "__main__":
    main()
