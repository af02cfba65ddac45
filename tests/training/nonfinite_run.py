"""Trainings in which something is NaN in one step: in this process, or as one of several ranks.

As a script `python nonfinite_run.py ENGINE FOLDER`: ENGINE is ddp, fsdp, or a stage of DeepSpeed's ZeRO; writes
rank-N.json.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_run
import torch
import transformers
from torch import Tensor

from tpo_plugin import TPOError, apply_tpo, wrap_trainer

STEP = 3
"""The one in which it is, of five."""

Fault = Callable[[Any, Callable[[], bool]], None]
"""Arms a model; the second argument says whether it is time."""


def loss_of_head(model: Any, now: Callable[[], bool], factor: float = float("nan")) -> None:
    head = model.tpo.heads["point"]
    own = head.loss

    def loss(*args: Any) -> dict[str, Tensor]:
        terms = own(*args)
        return {name: value * factor for name, value in terms.items()} if now() else terms

    head.loss = loss


def constant_in_a_loss(model: Any, now: Callable[[], bool]) -> None:
    """Its gradient is finite."""
    head = model.tpo.heads["point"]
    own = head.loss
    head.loss = lambda *args: {**own(*args), "loss_more": torch.tensor(float("nan") if now() else 0.0)}


def host_output(model: Any, now: Callable[[], bool]) -> None:
    model.model.norm.register_forward_hook(lambda module, args, out: out * float("nan") if now() else None)


def gradient(model: Any, now: Callable[[], bool], name: str) -> None:
    parameter = dict(model.named_parameters())[name]
    parameter.register_hook(lambda grad: torch.full_like(grad, float("inf")) if now() else None)


def named(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch that says where its rows come from."""
    return tiny_run.collate(samples) | {"task_records": [f"chats.jsonl:{s['line']}" for s in samples]}


class Seen(transformers.TrainerCallback):
    """Counts steps, and keeps the weights after each."""

    def __init__(self) -> None:
        self.step = 0
        self.weights: list[dict[str, Tensor]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step + 1

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        from tpo_plugin import sharding

        self.weights.append(sharding.whole(dict(model.named_parameters())))


def trainer_of(
    folder: Any, fault: Fault, *, steps: tuple[int, ...] = (STEP,), rank: int = 0, host: Path | None = None,
    on_nonfinite: Any = "stop", collate: Any = named, **changes: Any,
) -> Any:  # fmt: skip
    """A trainer of five steps on two micro-batches each; the fault is in the second one, on this rank."""
    tiny_run.install_head()
    arguments = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 5} | changes
    args = tiny_run.arguments(folder, **arguments)
    if host is None:
        model, tokenizer = tiny_run.host_with_tpo()
    else:
        model = transformers.LlamaForCausalLM.from_pretrained(host)
        tokenizer = transformers.AutoTokenizer.from_pretrained(host)
        torch.manual_seed(0)
        apply_tpo(model, tokenizer, heads=["point"])
    samples = tiny_run.Samples(tokenizer)
    for line, sample in enumerate(samples.samples, start=1):
        sample["line"] = line
    seen = Seen()
    trainer = wrap_trainer(transformers.Trainer, on_nonfinite=on_nonfinite)(
        model=model, args=args, train_dataset=samples, data_collator=collate, callbacks=[seen]
    )
    trainer.seen = seen

    def now() -> bool:
        second = len(trainer._losses) == 1 or not torch.is_grad_enabled()
        return model.training and seen.step in steps and second and int(os.environ.get("RANK", "0")) == rank

    fault(model, now)
    return trainer


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        logging.getLogger("tpo_plugin.training.nonfinite").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def main(engine: str, folder: Path) -> None:
    """Stops, and leaves out, with a fault on rank 1."""
    changes: dict[str, Any] = {"per_device_train_batch_size": 2}
    if engine == "fsdp":
        changes |= {"use_cpu": False, "dataloader_pin_memory": False, "fsdp": True, "fsdp_config": {"version": 2}}
    elif engine != "ddp":
        import zero_run

        zero = zero_run.settings(int(engine))
        changes |= {"use_cpu": False, "deepspeed": zero}
    host = folder / "host"
    found: dict[str, Any] = {}
    faults = {"loss": loss_of_head, "constant": constant_in_a_loss}
    if engine == "ddp":
        faults["gradient"] = lambda model, now: gradient(model, now, "tpo.heads.point.proj.weight")
    for name, fault in faults.items():
        trainer = trainer_of(folder / name, fault, rank=1, host=host, **changes)
        try:
            trainer.train()
            said = "nothing"
        except TPOError as error:
            said = str(error)
        weights = trainer.seen.weights
        found[name] = {"said": said, "steps": len(weights)}
    warnings = Warnings()
    trainer = trainer_of(folder / "skip", loss_of_head, rank=1, host=host, on_nonfinite="skip", **changes)
    trainer.train()
    weights = trainer.seen.weights
    found["skip"] = {
        "said": warnings.texts,
        "steps": len(weights),
        "same": all(torch.equal(weights[STEP - 1][n], w) for n, w in weights[STEP - 2].items()),
        "moved": any(not torch.equal(weights[STEP][n], w) for n, w in weights[STEP - 1].items()),
        "finite": all(bool(w.isfinite().all()) for w in weights[-1].values()),
        "log": [entry for entry in trainer.state.log_history if "learning_rate" in entry],
    }
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "fsdp":
        from ranks import use_fsdp

        use_fsdp()
    elif sys.argv[1] != "ddp":
        from ranks import use_deepspeed

        use_deepspeed()
    main(sys.argv[1], Path(sys.argv[2]))
