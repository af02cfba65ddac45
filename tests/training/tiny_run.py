"""Tiny training runs for the tests, in this process or as a script that each of several ranks runs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from tpo_plugin import (
    HeadConfig,
    Linear,
    TaskHead,
    TPOConfig,
    apply_tpo,
    hookimpl,
    register_plugin,
    registry,
    wrap_trainer,
)
from tpo_plugin.tiny import tiny_host


class PointHead(TaskHead):
    """One point per task token.

    In the training forward that environment variable AT says, on the rank RANK_AT or on all, it sends its process the
    signal SIGNAL_AT, or its group of processes GROUP_AT, or raises an error without one.
    """

    num_forwards = 0

    def __init__(self, config: HeadConfig, hidden_size: int) -> None:
        super().__init__()
        self.proj = Linear(hidden_size, 2)

    def forward(self, e_ND: Tensor) -> dict[str, Tensor]:
        if self.training and "AT" in os.environ:
            PointHead.num_forwards += 1
            here = os.environ.get("RANK_AT", os.environ.get("RANK")) == os.environ.get("RANK")
            if here and PointHead.num_forwards == int(os.environ["AT"]):
                if "GROUP_AT" in os.environ:
                    # from outside of the group, as a scheduler does: a worker takes it from its parent as an order
                    command = ["kill", f"-{os.environ['GROUP_AT']}", "--", f"-{os.getpgid(0)}"]
                    subprocess.run(command, start_new_session=True, check=True)
                    time.sleep(1)
                elif "SIGNAL_AT" in os.environ:
                    os.kill(os.getpid(), int(os.environ["SIGNAL_AT"]))
                else:
                    raise ValueError("the point head has had enough")
        return {"points_xy": self.proj(e_ND)}

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Any], num_targets: Tensor | int) -> dict[str, Tensor]:
        return {"loss_l2": F.mse_loss(outputs["points_xy"], targets["points_xy"], reduction="sum") / num_targets}


class PointPlugin:
    @hookimpl
    def register_heads(self, register: Any) -> None:
        register("point", head=PointHead, trigger="<point_begin>", task_token="<point>")


def install_head() -> None:
    if "point" not in registry().heads:
        register_plugin(PointPlugin(), "point")


class MeanOnlyHost(transformers.LlamaForCausalLM):
    """A host whose loss is a mean whatever the trainer says, as some are."""

    accepts_loss_kwargs = False

    def forward(self, input_ids=None, attention_mask=None, labels=None):  # type: ignore[no-untyped-def, override]
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        if labels is not None:
            logits, targets = output.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
            output["loss"] = F.cross_entropy(logits, targets)
        return output


def host_with_tpo(kind: str = "honours", config: TPOConfig | None = None) -> tuple[Any, Any]:
    install_head()
    model, tokenizer = tiny_host()
    if kind == "mean":
        mean_only = MeanOnlyHost(model.config)
        mean_only.load_state_dict(model.state_dict())
        model = mean_only.eval()
    torch.manual_seed(0)
    return apply_tpo(model, tokenizer, heads=["point"], config=config), tokenizer


# What an answer holds besides words: a number of tasks, and whether there are words at all. Eight of them make a step.
KINDS = [(0, True), (2, True), (1, True), (1, False), (0, True), (2, False), (1, True), (0, True)]


class Samples(torch.utils.data.Dataset):
    """Samples of different lengths with 0 to 2 targets; some answers are nothing but triggers and task tokens."""

    def __init__(self, tokenizer: Any, num: int = 24) -> None:
        word = tokenizer.convert_tokens_to_ids
        trigger, task = word(["<point_begin>", "<point>"])
        generator = torch.Generator().manual_seed(1)
        self.samples = []
        for index in range(num):
            tasks, words = KINDS[index % len(KINDS)]
            prompt = [1, *torch.randint(4, 12, (2 + index % 3,), generator=generator).tolist()]
            answer = torch.randint(4, 12, (1 + index % 5,), generator=generator).tolist() if words else []
            labels = list(answer)
            for _ in range(tasks):
                answer += [trigger, task]
                labels += [trigger, -100]
            if words:
                answer, labels = [*answer, 2], [*labels, 2]
            points = torch.rand(tasks, 2, generator=generator).tolist()
            self.samples.append(
                {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + labels, "points": points}
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    length = max(len(s["input_ids"]) for s in samples)

    def pad(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (length - len(row)) for row in rows])

    points = [point for s in samples for point in s["points"]]
    return {
        "input_ids": pad([s["input_ids"] for s in samples], 0),
        "labels": pad([s["labels"] for s in samples], -100),
        "attention_mask": pad([[1] * len(s["input_ids"]) for s in samples], 0),
        "task_targets": {"point": {"points_xy": torch.tensor(points).reshape(-1, 2)}},
    }


def arguments(output_dir: Any, **changes: Any) -> transformers.TrainingArguments:
    values = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 8,
        "max_steps": 10,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "seed": 3,
    }
    return transformers.TrainingArguments(**values | changes)


@dataclass
class Run:
    """One way to train the same global batches."""

    host: str = "honours"
    micro: int = 8
    accumulation: int = 1
    average: bool = True
    """`average_tokens_across_devices`, where transformers has it."""
    num_samples: int = 24
    evaluates_first: bool = False


def train(run: Run, output_dir: Any) -> dict[str, Any]:
    """Ten steps; the logged values of each, and the trained parameters."""
    model, tokenizer = host_with_tpo(run.host)
    fields = {f.name for f in dataclasses.fields(transformers.TrainingArguments)}
    average = {"average_tokens_across_devices": run.average} if "average_tokens_across_devices" in fields else {}
    args = arguments(
        output_dir, per_device_train_batch_size=run.micro, gradient_accumulation_steps=run.accumulation, **average
    )
    trainer = wrap_trainer(transformers.Trainer)(
        model=model, args=args, train_dataset=Samples(tokenizer, run.num_samples), data_collator=collate
    )
    if run.evaluates_first:
        trainer.evaluate(Samples(tokenizer, 16))
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    evaluation = trainer.evaluate(Samples(tokenizer, 16))
    odd_evaluation = trainer.evaluate(Samples(tokenizer, 9))
    return {
        "logs": logs,
        "evaluation": evaluation,
        "odd evaluation": odd_evaluation,
        "parameters": {n: p.detach().clone() for n, p in model.named_parameters()},
    }


KEYS = ["loss", "loss_mllm", "loss_assign", "loss_point", "assign_accuracy", "false_trigger_rate", "grad_norm"]


def assert_same(result: dict[str, Any], expected: dict[str, Any]) -> None:
    """Two results of `train` are the same but for rounding."""
    assert len(result["logs"]) == len(expected["logs"]) == 10
    for entry, wanted in zip(result["logs"], expected["logs"], strict=True):
        for key in KEYS:
            assert entry[key] == pytest.approx(wanted[key], rel=1e-5, abs=1e-9), (key, entry["step"])
    for key, value in expected["evaluation"].items():
        if key.startswith(("eval_loss_", "eval_point", "eval_assign", "eval_false")):
            assert result["evaluation"][key] == pytest.approx(value, rel=1e-5), key
    for name, parameter in expected["parameters"].items():
        assert (result["parameters"][name] - parameter).abs().max() <= 1e-6, name


BY_LENGTH = (
    {"train_sampling_strategy": "group_by_length"}
    if any(f.name == "train_sampling_strategy" for f in dataclasses.fields(transformers.TrainingArguments))
    else {"group_by_length": True}
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ ' where ' if m['role'] == 'user' else ' here ' }}"
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %} {{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} here {% endif %}"
)


def write_world(folder: Path, num_rows: int = 64, stages: Sequence[str] | None = None, **changes: Any) -> Path:
    """A host, records and a configuration of three short stages, or of those named; returns the configuration's path.

    The vocabulary has 12 words; with `num_rows=12` there is no spare row for the task tokens.
    """
    model, tokenizer = tiny_host()
    model.resize_token_embeddings(num_rows)
    tokenizer.chat_template = CHAT_TEMPLATE
    model.save_pretrained(folder / "host")
    tokenizer.save_pretrained(folder / "host")
    words = ["red", "circle", "the", "is", "it"]
    generator = torch.Generator().manual_seed(5)

    def turns(question: str, answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]

    tasks, chats = [], []
    for index in range(16):
        word = words[index % 5]
        points = torch.rand(1 + index % 2, 2, generator=generator).tolist()
        answer = " ".join(["it stands here <point>"] * len(points))
        record = {"id": f"t{index}", "conversations": turns(f"where is {word}", answer)}
        tasks.append(record | {"tasks": [{"head": "point", "points_xy": point} for point in points]})
        chats.append({"id": f"c{index}", "conversations": turns(f"is it {word}", f"the {word} circle")})
    for name, records in (("tasks", tasks), ("chats", chats)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    data = [{"file": str(folder / "tasks.jsonl")}, {"file": str(folder / "chats.jsonl"), "weight": 0.5}]
    common = {
        "batch_size": 4, "micro_batch_size": 2, "epochs": 2.0, "save_steps": 2, "logging_steps": 1,
        "eval_generations": 0,
        "trainer": {"use_cpu": True, "disable_tqdm": True, "report_to": []}, "data": data,
    }  # fmt: skip
    rows = {"lora": 1e-2, "triggers": 1e-2}
    values: dict[str, Any] = {
        "model": str(folder / "host"),
        "output_dir": str(folder / "run"),
        "heads": ["point"],
        "lora": {"r": 2, "alpha": 4, "dropout": 0.1},
        "seed": 1,
        "stages": {
            "stage1": common | {"learning_rates": rows, "epochs": 1.0},
            "stage2": common | {"learning_rates": rows | {"heads": 1e-2, "tokens": 2e-2}, "eval_data": data[:1]},
            "stage3": common | {"learning_rates": {"lora": 1e-3, "heads": 1e-3, "norms": 1e-3}, "epochs": 1.0},
        },
        "modules": {"norms": "norm"},
    }
    if stages is not None:
        values["stages"] = {name: values["stages"][name] for name in stages}
    path = folder / "config.yaml"
    path.write_text(json.dumps(values | changes))  # JSON is YAML
    return path


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "run":  # python tiny_run.py run CONFIG
        from tpo_plugin.training.run import train as train_run

        install_head()
        train_run(sys.argv[2])
    elif sys.argv[1] == "cli":  # python tiny_run.py cli train CONFIG, as the command tpo
        from tpo_plugin.cli import main

        install_head()
        del sys.argv[1]
        main()
    else:  # python tiny_run.py RUN_AS_JSON FOLDER, as one rank
        result = train(Run(**json.loads(sys.argv[1])), sys.argv[2])
        if os.environ["RANK"] == "0":
            torch.save(result, Path(sys.argv[2]) / "result.pt")
