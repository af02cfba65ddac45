"""A run: the three stages of one configuration, resumable anywhere, and its result.

output_dir/config.yaml          the configuration, as understood
output_dir/stage1 .. stage3/    checkpoints of the Trainer; final/ has the weights at its end, stage.json its metrics
output_dir/run.json             written at the very end, beside the adapter, the tpo files and the processor
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from packaging.version import Version
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations import is_tensorboard_available
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import IntervalStrategy

from tpo_plugin import zero
from tpo_plugin.apply import apply_tpo
from tpo_plugin.checkpoint import load_tpo
from tpo_plugin.config import FORMAT_VERSION, config_from_dict
from tpo_plugin.data import RecordDataset, Records, TPOCollator, VideoOptions
from tpo_plugin.errors import TPOError, did_you_mean
from tpo_plugin.files import load_weights, replace_file
from tpo_plugin.training.attention import attention
from tpo_plugin.training.checkpoints import last_checkpoint, load_host_weights, save_host_weights
from tpo_plugin.training.config import DataSource, StageConfig, TrainConfig
from tpo_plugin.training.parts import LORA, language_linears, optimizer_groups, set_trainable
from tpo_plugin.training.same_media import SameMedia
from tpo_plugin.training.trainer import wrap_trainer

logger = logging.getLogger(__name__)

RUN_FILE, STAGE_FILE, CONFIG_FILE, FINAL = "run.json", "stage.json", "config.yaml", "final"


def train(config: TrainConfig | str | os.PathLike[str], *, resume: bool = True) -> Path:
    """Trains all stages and returns the run's folder.

    The same call on a folder with an unfinished run goes on where it stopped, in whichever stage. With `resume=False`
    such a folder is refused. Started by torchrun or accelerate, it trains on all ranks. Raises `TPOError` for what is
    wrong in the configuration, its data, or the folder.
    """
    config = config if isinstance(config, TrainConfig) else TrainConfig.from_yaml(Path(config))
    directory = Path(config.output_dir)
    state = PartialState()
    _open_run(config, directory, resume, state)
    if (directory / RUN_FILE).is_file():
        logger.info("%s is finished already", directory)
        return directory
    model = build_model(config)
    finished = [name for name in config.stages if (directory / name / STAGE_FILE).is_file()]
    if finished:
        _load_weights(model, directory / finished[-1] / FINAL)
    trained: set[str] = set()
    for name, stage in config.stages.items():
        rates = set_trainable(model, stage.learning_rates, config.modules, where=name)
        trained |= set(rates)
        if name in finished:
            continue
        trainer, metrics = _train_stage(model, config, name, rates)
        if state.is_main_process or zero.split(model.parameters()):
            _save_weights(model, directory / name / FINAL, trained)
        if state.is_main_process:
            _write_json(directory / name / STAGE_FILE, metrics)
        state.wait_for_everyone()
        if trainer.deepspeed is not None:  # its engine has hooks in the model, and under ZeRO-3 parts of it
            trainer.deepspeed.destroy()
            unset_hf_deepspeed_config()
            del trainer, model
            model = build_model(config)
            _load_weights(model, directory / name / FINAL)
    model.tpo.config.loss_weights = dict(config.tpo.loss_weights)
    if state.is_main_process:
        _save_weights(model, directory, trained)
        _write_json(directory / RUN_FILE, _describe(config, directory))
    state.wait_for_everyone()
    return directory


def load_run(directory: str | os.PathLike[str], *, host: str | os.PathLike[str] | None = None) -> nn.Module:
    """The trained model of a finished run, in evaluation mode, with `model.tpo` and `model.tpo.processor` ready.

    `host` says where the host lies now, if it has moved. Raises `TPOError` for a folder that is no finished run, for
    one of a newer version, and for a head that is not installed.
    """
    directory = Path(directory)
    saved = read_run(directory)
    config = TrainConfig(**saved["config"])
    source = str(host or saved["host"])
    try:
        model = load_host(source, config.dtype)
    except (OSError, ValueError) as error:
        raise TPOError(
            f"{directory}: its host {source!r} cannot be loaded ({error}); give host= if it has moved"
        ) from error
    model = load_tpo(model, directory)
    load_host_weights(model, directory)
    return model.eval()


def read_run(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """`run.json` of a finished run: its configuration, host, versions and the metrics of each stage."""
    path = Path(directory) / RUN_FILE
    if not path.is_file():
        started = (Path(directory) / CONFIG_FILE).is_file()
        remedy = "expected the output_dir of tpo train"
        if started:
            remedy = f"its run is unfinished, and goes on with: tpo train {Path(directory) / CONFIG_FILE}"
        raise TPOError(f"{directory} has no {RUN_FILE}; {remedy}")
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved["format_version"] > FORMAT_VERSION:
        raise TPOError(
            f"{path} has format version {saved['format_version']} (tpo-plugin {saved.get('tpo_plugin')}), this "
            f"tpo-plugin reads up to {FORMAT_VERSION}: pip install -U tpo-plugin"
        )
    return saved


def load_host(name: str, dtype: str = "auto", attn: str = "auto") -> transformers.PreTrainedModel:
    """A host as it was saved: a vision-language model or a causal LM, as its config says.

    `dtype` and `attn` are those of `TrainConfig`. Raises `TPOError` for an attention that cannot run.
    """
    config = AutoConfig.from_pretrained(name)
    vision = getattr(transformers, "AutoModelForImageTextToText", None) or transformers.AutoModelForVision2Seq
    auto = vision if type(config) in vision._model_mapping else AutoModelForCausalLM
    keyword = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
    precision = getattr(config, keyword, None) if dtype == "auto" else getattr(torch, dtype)
    chosen = attention(attn, auto._model_mapping.get(type(config), None), precision)
    options = {} if chosen is None else {"attn_implementation": chosen}
    try:
        return auto.from_pretrained(name, **{keyword: dtype if dtype == "auto" else precision}, **options)
    except (ImportError, ValueError) as error:
        if chosen is None:
            raise
        raise TPOError(f"{name!r} cannot be loaded with attn: {chosen} ({error}); expected 'auto' or 'sdpa'") from error


def build_model(config: TrainConfig) -> nn.Module:
    """The host with LoRA and TPO, as a run starts with it; the same for the same seed."""
    set_seed(config.seed)
    model: nn.Module = load_host(config.model, config.dtype, config.attn)
    processor = AutoProcessor.from_pretrained(config.model)
    if config.lora is not None:
        from peft import LoraConfig, get_peft_model

        lora = config.lora
        targets = lora.targets or language_linears(model, config.modules)
        settings = LoraConfig(
            r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, settings)
    return apply_tpo(model, processor, heads=config.heads or None, config=config.tpo)


# -- one stage ---------------------------------------------------------------------------------------------------------


class StageTrainer(wrap_trainer(transformers.Trainer)):  # type: ignore[misc]
    """A wrapped Trainer that trains exactly the parts of a stage, at their rates."""

    thaws_tpo = False

    rates: dict[str, float]
    same_media: SameMedia | None = None
    optimizer: Any

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return self.same_media or super()._get_train_sampler(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self._check_triggers()
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(optimizer_groups(self.model, self.rates, self.args.weight_decay), **options)
        return self.optimizer


class _Epochs(TrainerCallback, torch.utils.data.Dataset):
    """A dataset whose epoch is set where an epoch begins.

    Accelerate would tell the sampler only, or, in a loader that skips what a resumed run has seen, say epoch 0.
    """

    def __init__(self, dataset: RecordDataset) -> None:
        self.dataset, self.epoch = dataset, -1

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch = int(state.epoch or 0) if self.epoch < 0 else self.epoch + 1
        self.dataset.set_epoch(self.epoch)


def _train_stage(
    model: nn.Module, config: TrainConfig, name: str, rates: dict[str, float]
) -> tuple[StageTrainer, dict[str, Any]]:
    """The trainer of a stage that was trained, and its log, evaluation and media."""
    stage, folder = getattr(config, name), Path(config.output_dir) / name
    kinds = ["mllm", "assign", *model.tpo.heads]
    for loss in stage.losses or ():
        if loss not in kinds:
            raise TPOError(f"{name}: losses has {loss!r}{did_you_mean(loss, kinds)}")
    active = kinds if stage.losses is None else stage.losses
    model.tpo.config.loss_weights = {kind: config.tpo.weight(kind) if kind in active else 0.0 for kind in kinds}
    if not stage.data:
        raise TPOError(f"{name} has no data: name at least one file of records, or leave the stage out ({name}: null)")
    dataset = _dataset(model, config, stage.data)
    evaluation = _dataset(model, config, stage.eval_data) if stage.eval_data else None
    args = _arguments(model, config, name)
    epochs = _Epochs(dataset)
    trainer = StageTrainer(
        model=model,
        args=args,
        train_dataset=epochs,
        eval_dataset=evaluation,
        data_collator=TPOCollator(model.tpo, max_length=config.data.max_length),
        callbacks=[epochs],
    )
    trainer.rates = rates
    if trainer.is_deepspeed_enabled:
        block = stage.micro_batch_size * args.world_size
        trainer.same_media = SameMedia(dataset, block, config.seed, lambda: max(epochs.epoch, 0))
    checkpoint = last_checkpoint(folder, args.world_size)
    if checkpoint is not None:
        logger.info("%s goes on from %s", name, checkpoint)
        reached = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))
    if checkpoint is not None and reached.global_step >= reached.max_steps:
        trainer._load_from_checkpoint(checkpoint)  # the Trainer would do one step more
        trainer.state = reached
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    metrics = {"log": trainer.state.log_history, "steps": trainer.state.global_step}
    if evaluation is not None:
        metrics["evaluation"] = trainer.evaluate()
    skipped = dataset.report()
    (logger.warning if dataset.skipped else logger.info)("%s: %s", name, skipped)
    return trainer, metrics | {"media": skipped}


def _arguments(model: nn.Module, config: TrainConfig, name: str) -> TrainingArguments:
    stage: StageConfig = getattr(config, name)
    fields = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    for key in stage.trainer:
        if key not in fields:
            raise TPOError(f"{name}.trainer: unknown TrainingArguments key {key!r}{did_you_mean(key, fields)}")
    bf16 = config.bf16
    if bf16 is None:
        bf16 = model.tpo.model.dtype != torch.float32 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    every = {} if stage.eval_steps is None else {"eval_steps": stage.eval_steps}
    strategy = IntervalStrategy.EPOCH if stage.eval_steps is None else IntervalStrategy.STEPS
    values = {
        "output_dir": str(Path(config.output_dir) / name),
        "per_device_train_batch_size": stage.micro_batch_size,
        "per_device_eval_batch_size": stage.micro_batch_size,
        "num_train_epochs": stage.epochs,
        "max_steps": stage.steps or -1,
        "learning_rate": max(stage.learning_rates.values(), default=0.0),
        "lr_scheduler_type": stage.scheduler,
        # transformers 5 takes a share in the place of a number of steps
        "warmup_ratio" if "warmup_ratio" in fields else "warmup_steps": stage.warmup,
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
        "remove_unused_columns": False,
        "report_to": ["tensorboard"] if is_tensorboard_available() else [],
    }
    values |= every | stage.trainer
    steps = stage.accumulation(TrainingArguments(**values).world_size)
    args = TrainingArguments(**values | {"gradient_accumulation_steps": steps})
    if args.deepspeed and "optimizer" in args.hf_deepspeed_config.config:
        raise TPOError(
            f"{name}.trainer: {args.deepspeed} has an optimizer of its own, which would train every part at one rate; "
            "expected a DeepSpeed configuration without one"
        )
    return args


def _dataset(model: nn.Module, config: TrainConfig, sources: Sequence[DataSource]) -> RecordDataset:
    records = [Records(source.file, model.tpo, media_root=source.media) for source in sources]
    shares = [source.weight * len(items) for source, items in zip(sources, records, strict=True)]
    mixed = any(source.weight != 1 for source in sources)
    return RecordDataset(
        records,
        weights=shares if mixed else None,
        num_samples=max(1, round(sum(shares))) if mixed else None,
        seed=config.seed,
        video=config_from_dict(VideoOptions, config.data.video, where="data.video"),
        max_bad_share=config.data.max_bad_share,
    )


# -- files -------------------------------------------------------------------------------------------------------------


def _open_run(config: TrainConfig, directory: Path, resume: bool, state: PartialState) -> None:
    """Writes the configuration, or compares it to the one of the run that is there."""
    import yaml

    path = directory / CONFIG_FILE
    text = yaml.safe_dump(config.to_dict(), sort_keys=False)
    if path.is_file():
        if not resume:
            raise TPOError(f"{directory} has a run already: resume it, or give another output_dir")
        there, here = yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(text)
        # It may go on with another attention: on another machine.
        changed = sorted(key for key in {*there, *here} - {"attn"} if there.get(key) != here.get(key))
        if changed:
            raise TPOError(
                f"{directory} has a run with other settings of {changed}, so it cannot go on; give another output_dir, "
                f"or the settings of {path}"
            )
    state.wait_for_everyone()
    if state.is_main_process and not path.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda name: Path(name).write_text(text, encoding="utf-8"))
    state.wait_for_everyone()


def _save_weights(model: nn.Module, directory: Path, host_names: set[str]) -> None:
    """Everything that training changed: adapter, tpo, and the host's own weights of these names.

    Under ZeRO-3 every rank must call it.
    """
    adapter = [parameter for name, parameter in model.named_parameters() if LORA.search(name)]
    with zero.gathered(adapter):
        if adapter and zero.writes(adapter):
            model.save_pretrained(str(directory), save_embedding_layers=False)
    save_host_weights(model, directory, host_names)
    model.tpo.save_pretrained(directory)


def _load_weights(model: nn.Module, directory: Path) -> None:
    if hasattr(model, "peft_config"):
        model.load_adapter(str(directory), model.active_adapter, is_trainable=True)
    load_host_weights(model, directory)
    load_weights(model.tpo, directory)


def _describe(config: TrainConfig, directory: Path) -> dict[str, Any]:
    from tpo_plugin import __version__

    host = Path(config.model)
    return {
        "format_version": FORMAT_VERSION,
        "tpo_plugin": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "host": str(host.resolve()) if host.exists() else config.model,
        "config": config.to_dict(),
        "stages": {
            name: json.loads((directory / name / STAGE_FILE).read_text(encoding="utf-8")) for name in config.stages
        },
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    replace_file(path, lambda name: Path(name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8"))
