"""The stages of a run: all are checked against the host before the first one trains."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from torch import nn
from transformers import PrinterCallback, ProgressCallback, TrainingArguments
from transformers.integrations import WandbCallback, get_available_reporting_integrations, is_tensorboard_available
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import IntervalStrategy

from tpo_plugin.config import TPOConfig
from tpo_plugin.data import RecordDataset, Records, TPOCollator
from tpo_plugin.errors import TPOError, did_you_mean
from tpo_plugin.training.checkpoints import gathered
from tpo_plugin.training.config import DataSource, StageConfig, TrainConfig, check_losses
from tpo_plugin.training.grouping import strategy_of
from tpo_plugin.training.parts import can_learn_triggers, optimizer_groups, set_trainable
from tpo_plugin.training.ranks import on_main
from tpo_plugin.training.same_media import SameMedia
from tpo_plugin.training.signals import StopAtStepEnd, outlive_signals
from tpo_plugin.training.stage_log import StageLog
from tpo_plugin.training.throughput import Clocks
from tpo_plugin.training.trainer import wrap_trainer
from tpo_plugin.validation import WrongValues, check

logger = logging.getLogger(__name__)

Sources = dict[tuple[str, str | None], Records]
"""Opened records by their file and the folder of their media."""


def check_stages(model: nn.Module, config: TrainConfig, names: Sequence[str]) -> Sources:
    """Checks stages of a run against the model that they will train; returns their records, each file opened once.

    Raises `TPOError`, with the stage and the field, for parts and losses that the model does not have, for records that
    cannot be read or are wrong, and for a trainer that cannot be made.
    """
    sources: Sources = {}
    unusable = []
    for name in names:
        stage, where = config.stages[name], f"stages.{name}"
        weights = _loss_weights(model, config, name)
        if not stage.learning_rates:
            raise TPOError(f"{where}.learning_rates: is empty; expected the rate of at least one part")
        set_trainable(model, stage.learning_rates, config.modules, where=where)
        if weights["assign"] > 0 and not can_learn_triggers(model):
            raise TPOError(
                f"{where}.learning_rates: nothing that trains decides whether a trigger is emitted, so the assignment "
                "loss can never fall; give a rate to 'triggers', 'tokens', 'lora' or 'language', or name the losses "
                "without 'assign'"
            )
        with _without_trace():
            _arguments(model, config, name)
        if not stage.data:
            raise TPOError(f"{where}.data: is empty; name at least one file of records, or leave the stage out")
        for field in ("data", "eval_data"):
            for index, source in enumerate(getattr(stage, field)):
                key = (source.file, source.media)
                try:
                    sources[key] = sources.get(key) or Records(
                        source.file, model.tpo, media_root=source.media, confine=config.data.confine
                    )
                except TPOError as error:
                    unusable.append(f"{where}.{field}[{index}]: {error}")
    if unusable:
        raise TPOError("\n".join(unusable))
    return sources


def train_stage(
    model: nn.Module, config: TrainConfig, name: str, rates: dict[str, float], sources: Sources, console: Console
) -> tuple[StageTrainer, dict[str, Any]]:
    """Trains a stage, or goes on with it; returns its trainer, and its log, evaluation, throughput and media.

    `rates` are those of the parameters by name, `sources` what `check_stages` opened. What happens is printed on
    `console`.
    """
    stage = config.stages[name]
    model.tpo.config.loss_weights = _loss_weights(model, config, name)
    dataset = _dataset(config, stage.data, sources)
    evaluation = _dataset(config, stage.eval_data, sources) if stage.eval_data else None
    args = _arguments(model, config, name)
    stop = StopAtStepEnd()
    trainer = StageTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        eval_dataset=evaluation,
        data_collator=TPOCollator(model.tpo, max_length=config.data.max_length),
        callbacks=[stop],
    )
    trainer.rates, trainer.on_nonfinite = rates, config.on_nonfinite
    trainer.eval_generations = stage.eval_generations
    clocks = trainer.clocks = Clocks(trainer)
    log = StageLog(Path(config.output_dir), name, list(config.stages), list(model.tpo.heads), clocks, console)
    for printing in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(printing)
    trainer.callback_handler.callbacks.insert(0, log)
    trainer.add_callback(clocks)
    if trainer.runs_in_step:
        block = stage.micro_batch_size * args.world_size
        trainer.same_media = SameMedia(dataset, block, config.seed, lambda: trainer.epochs.epoch)
    metrics: dict[str, Any] = {}
    checkpoint = trainer.last_checkpoint()
    reached = _state_of(checkpoint)
    if reached is not None and _is_over(reached) and trainer.runs_in_step:
        # Its engine is made by training alone: the steps since the checkpoint before are done again.
        checkpoint = trainer.last_checkpoint(before=reached.global_step)
        reached = _state_of(checkpoint)
    if checkpoint is not None and trainer.is_world_process_zero():
        log.say(f"{log.title}: goes on from {checkpoint}")
    if checkpoint is not None and reached is not None and _is_over(reached):
        on_main(lambda: log.cut(len(reached.log_history)))
        trainer._load_from_checkpoint(checkpoint)  # the Trainer would do one step more
        trainer.state = reached
        trainer.take_up(checkpoint)
        if args.load_best_model_at_end and trainer.best_before is not None:
            trainer.state.best_model_checkpoint = trainer.best_before
            trainer._load_best_model()
        trainer.rotate()  # it may have been killed before it could
        trainer.log({"total_flos": reached.total_flos, "train_loss": trainer.mean_loss()})
    else:
        with stop.listening(), clocks.watching(), log.shown():
            trainer.train(resume_from_checkpoint=checkpoint)
    if evaluation is not None:
        metrics["evaluation"] = trainer.last_evaluation() or trainer.evaluate()
    metrics |= {"log": trainer.state.log_history, "steps": trainer.state.global_step}
    found = clocks.stage()
    if found is not None:
        metrics["throughput"] = found.to_json()
        log.end(found)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, WandbCallback):
            callback._wandb.finish()  # so that each stage is a run of its own there
    for read in (dataset, *([] if evaluation is None else [evaluation])):
        read.take_in(gathered([read.met]))
    since = "" if reached is None else f"since step {reached.global_step}, "
    metrics["media"] = since + dataset.report()
    (logger.warning if dataset.skipped else logger.info)("%s: %s", name, metrics["media"])
    if evaluation is not None and evaluation.skipped:
        metrics["evaluation_media"] = evaluation.report()
        logger.warning("%s: in its evaluations others of the same file stood in: %s", name, metrics["evaluation_media"])
    return trainer, metrics


def _state_of(checkpoint: str | None) -> TrainerState | None:
    return None if checkpoint is None else TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))


def _is_over(state: TrainerState) -> bool:
    return bool(state.global_step >= state.max_steps)


class StageTrainer(wrap_trainer(transformers.Trainer)):  # type: ignore[misc]
    """A wrapped Trainer that trains exactly the parts of a stage, at their rates."""

    thaws_tpo = False

    rates: dict[str, float]
    same_media: SameMedia | None = None
    clocks: Clocks
    optimizer: Any

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.clocks.begin(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.clocks.forward()
        return super().compute_loss(*args, **kwargs)

    def last_evaluation(self) -> dict[str, Any] | None:
        """What was measured behind the last step, if these are still the weights."""
        entries = [entry for entry in self.state.log_history if "eval_loss" in entry]
        if not entries or entries[-1]["step"] < self.state.global_step or self.args.load_best_model_at_end:
            return None
        return {name: value for name, value in entries[-1].items() if name != "step"}

    def _get_train_sampler(self, *args: Any) -> Any:
        if self.same_media is not None and strategy_of(self.args) == "random":
            return self.same_media
        return super()._get_train_sampler(*args)

    def _sums_to_json(self) -> dict[str, Any]:
        return super()._sums_to_json() | ({} if self.same_media is None else {"block": self.same_media.block})

    def _restore_sums(self, saved: list[dict[str, Any]]) -> None:
        super()._restore_sums(saved)
        if self.same_media is not None and "block" in saved[0]:
            self.same_media.go_on(saved[0]["block"])

    def get_train_dataloader(self) -> Any:
        return _outliving_signals(super().get_train_dataloader())

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        return _outliving_signals(super().get_eval_dataloader(*args, **kwargs))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(optimizer_groups(self.model, self.rates, self.args.weight_decay), **options)
        return self.optimizer


def _outliving_signals(loader: Any) -> Any:
    """A loader whose workers do so; accelerate's reads the one that makes them."""
    base = getattr(loader, "base_dataloader", loader)
    if getattr(base.worker_init_fn, "func", None) is not outlive_signals:  # transformers keeps those of evaluation
        base.worker_init_fn = functools.partial(outlive_signals, base.worker_init_fn)
    return loader


def _loss_weights(model: nn.Module, config: TrainConfig, name: str) -> dict[str, float]:
    """The weight of every loss in a stage: 0 of those that it does not use."""
    kinds = ["mllm", "assign", "retain", *model.tpo.heads]
    active = config.stages[name].losses or kinds
    check_losses(active, kinds, f"stages.{name}.losses")
    applied = TPOConfig(loss_weights=config.tpo.loss_weights, heads=model.tpo.config.heads)
    return {kind: applied.weight(kind) if kind in active else 0.0 for kind in kinds}


def _dataset(config: TrainConfig, chosen: Sequence[DataSource], sources: Sources) -> RecordDataset:
    records = [sources[source.file, source.media] for source in chosen]
    shares = [source.weight * len(items) for source, items in zip(chosen, records, strict=True)]
    mixed = any(source.weight != 1 for source in chosen)
    return RecordDataset(
        records,
        weights=shares if mixed else None,
        num_samples=max(1, round(sum(shares))) if mixed else None,
        seed=config.seed,
        video=config.data.video,
        image=config.data.image,
        max_bad_share=config.data.max_bad_share,
    )


# -- transformers' arguments -------------------------------------------------------------------------------------------


def _arguments(model: nn.Module, config: TrainConfig, name: str) -> TrainingArguments:
    """Of a stage's trainer. Raises `TPOError` for what they refuse."""
    stage, where = config.stages[name], f"stages.{name}"
    values = _values(model, config, name, stage)
    try:
        num_ranks = TrainingArguments(**values).world_size
        steps = stage.accumulation(num_ranks)
        args = TrainingArguments(**values | {"gradient_accumulation_steps": steps})
    except TPOError as error:
        raise TPOError(f"{where}: {error}") from error
    except Exception as error:  # whatever they, DeepSpeed or accelerate raise
        raise TPOError(f"{where}: its TrainingArguments cannot be made: {error}") from error
    _check_reports(args.report_to, where)
    if args.deepspeed and "optimizer" in args.hf_deepspeed_config.config:
        raise TPOError(
            f"{where}.trainer: {args.deepspeed} has an optimizer of its own, which would train every part at one rate; "
            "expected a DeepSpeed configuration without one"
        )
    return args


def _values(model: nn.Module, config: TrainConfig, name: str, stage: StageConfig) -> dict[str, Any]:
    output_dir = {"output_dir": str(Path(config.output_dir) / name)}
    # transformers declares text, for its command line
    fsdp = {key: value for key, value in stage.trainer.items() if key == "fsdp" and isinstance(value, bool)}
    others = {key: value for key, value in stage.trainer.items() if key not in fsdp}
    try:
        trainer = check(TrainingArguments, output_dir | others) | fsdp
    except WrongValues as error:
        raise error.at(f"stages.{name}.trainer") from error
    bf16 = config.bf16
    if bf16 is None:
        bf16 = model.tpo.model.dtype != torch.float32 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    every = {} if stage.eval_steps is None else {"eval_steps": stage.eval_steps}
    strategy = IntervalStrategy.EPOCH if stage.eval_steps is None else IntervalStrategy.STEPS
    share = hasattr(TrainingArguments, "warmup_ratio")
    values = {
        "per_device_train_batch_size": stage.micro_batch_size,
        "per_device_eval_batch_size": stage.micro_batch_size,
        "num_train_epochs": stage.epochs,
        "max_steps": stage.steps or -1,
        "learning_rate": max(stage.learning_rates.values(), default=0.0),
        "lr_scheduler_type": stage.scheduler,
        # transformers 5 takes a share in the place of a number of steps
        "warmup_ratio" if share else "warmup_steps": stage.warmup,
        "optim": "adamw_torch",
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.max_grad_norm,
        "bf16": bf16,
        "seed": config.seed,
        "logging_steps": stage.logging_steps,
        "save_steps": stage.save_steps,
        "save_total_limit": 2,
        "eval_strategy": strategy if stage.eval_data else IntervalStrategy.NO,
        "dataloader_num_workers": config.data.num_workers,
        # without an accelerator it pins nothing, and torch says so for each loader; before 2.6 torch cannot tell
        "dataloader_pin_memory": not hasattr(torch, "accelerator") or torch.accelerator.is_available(),
        "remove_unused_columns": False,
        "report_to": config.report_to,
        "run_name": f"{Path(config.output_dir).name}-{name}",
    }
    if config.report_to is None:
        values["report_to"] = ["tensorboard"] if is_tensorboard_available() else []
    return values | every | trainer


def _check_reports(names: Sequence[str], where: str) -> None:
    """Raises `TPOError` for what transformers does not report to, or could not for want of a package."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise TPOError(f"{where}: report_to names {name!r}{did_you_mean(name, INTEGRATION_TO_CALLBACK)}")
        if name not in get_available_reporting_integrations():
            raise TPOError(
                f"{where}: report_to names {name!r}, whose package is not installed: pip install "
                f"{name.replace('_', '-')}, or take it out of report_to; all is in log.jsonl in any case"
            )


@contextmanager
def _without_trace() -> Iterator[None]:
    """Undoes what TrainingArguments switch on for every later trainer: DeepSpeed, and a precision."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        unset_hf_deepspeed_config()
