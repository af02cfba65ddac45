"""`wrap_trainer`: any transformers Trainer, with losses that are weighted over the whole accumulated global batch.

What a micro-batch adds to the loss is (1/s) * sum_k w_k * S_k / N_k: S_k its summed loss of kind k, N_k the targets of
that kind in all micro-batches of the step on all W ranks, and s what the trainer, accelerate and DDP do to the loss
afterwards. The wrapped trainer counts the N_k and chooses 1/s, the "scale"; the model's forward divides, weights, sums
and scales. It is the model's own loss, because DDP looks for unused parameters in the graph of what forward returns.

- transformers >= 4.46: a loss that the trainer believes to be normalised is not divided by the accumulation steps; DDP
  averages over ranks, which the trainer makes good where `average_tokens_across_devices` is set. 1/s is 1, otherwise W.
- transformers 4.45: accelerate divides by the configured accumulation steps A, DDP averages over ranks: 1/s is A * W.
- DeepSpeed does the same in the places of accelerate and DDP.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from typing import TYPE_CHECKING, Any, get_args

import torch
import transformers
from accelerate.utils import send_to_device
from torch import Tensor, nn

from tpo_plugin import sharding
from tpo_plugin.errors import TPOError
from tpo_plugin.positions import Counts
from tpo_plugin.training.counting import count_step
from tpo_plugin.training.epochs import Epochs, without_set_epoch
from tpo_plugin.training.fsdp import choose_units
from tpo_plugin.training.grouping import GroupingMixin, with_own_datasets
from tpo_plugin.training.idle import share_media
from tpo_plugin.training.measuring import MeasuringMixin
from tpo_plugin.training.nonfinite import CheckEngine, NonfiniteMixin, OnNonfinite
from tpo_plugin.training.own_loss import SEES_WHOLE_STEP, OwnLossMixin
from tpo_plugin.training.parts import can_learn_triggers
from tpo_plugin.training.refusals import CheckColumns, check_arguments, check_kept, not_dispatched, trl_class
from tpo_plugin.training.saving import KeepBest, SaveAfterEpoch, SavingMixin
from tpo_plugin.training.start import start_triggers

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer

    from tpo_plugin.model import TaskPreferenceModel
else:
    _Trainer = object

logger = logging.getLogger(__name__)


def wrap_trainer(
    base: type[transformers.Trainer], *, on_nonfinite: OnNonfinite = "stop", eval_generations: int = 0
) -> type[transformers.Trainer]:
    """A subclass of `base` (transformers' Trainer, TRL's SFTTrainer, LLaVA's, a team's own) that trains TPO.

    It logs every loss, the accuracy of the assignment and the rate of false triggers, evaluates with the heads'
    metrics, and keeps `tpo_model.safetensors` beside each checkpoint. It takes no step with a loss or a gradient that
    is NaN or infinite: `on_nonfinite="stop"` raises `TPOError` there, which names it and the records, "skip" leaves the
    step out with a warning that does. Each evaluation of a `RecordDataset` answers `eval_generations` of its questions
    with nothing forced, and reports how often each head was called (`free_…`). Raises `TPOError` for a base, or for
    arguments, that would lose a loss.
    """
    if on_nonfinite not in get_args(OnNonfinite):
        raise TPOError(f"wrap_trainer got on_nonfinite={on_nonfinite!r}; expected 'stop' or 'skip'")
    if isinstance(eval_generations, bool) or not isinstance(eval_generations, int) or eval_generations < 0:
        raise TPOError(f"wrap_trainer got eval_generations={eval_generations!r}; expected a number of at least 0")
    if not (isinstance(base, type) and issubclass(base, transformers.Trainer)):
        raise TPOError(
            f"wrap_trainer got {base!r}; expected a subclass of transformers.Trainer (the class, not an object)"
        )
    settings = {"on_nonfinite": on_nonfinite, "eval_generations": eval_generations}
    if issubclass(base, TPOTrainerMixin) and all(getattr(base, name) == value for name, value in settings.items()):
        return base
    ours = trl_class(base)
    if ours is not None and ours != "SFTTrainer":
        raise TPOError(
            f"{ours} computes a loss of its own from other inputs than labels, to which TPO cannot add; use it as it "
            f"is, {ours}(model, ...), which trains a model with TPO as it trains any other, on text (a head's metric "
            "can be its reward: HeadReward); for records with tasks expected transformers.Trainer, trl.SFTTrainer, or "
            "a subclass"
        )
    if issubclass(base, TPOTrainerMixin):
        return type(base.__name__, (base,), settings)
    return type(f"TPO{base.__name__}", (TPOTrainerMixin, base), settings)


class TPOTrainerMixin(OwnLossMixin, GroupingMixin, MeasuringMixin, SavingMixin, NonfiniteMixin):
    """The methods of `transformers.Trainer` that TPO adds to; see `wrap_trainer`."""

    thaws_tpo = True
    """Whether a `model.tpo` without a trainable parameter is made trainable: `get_peft_model` freezes all of it."""

    train_dataset: Any
    collates_tasks = False
    """Whether tasks are collated around whatever collator the trainer is made with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._start_sums()
        if trl_class(type(self)) is None:
            super().__init__(*args, **kwargs)
        else:
            with_own_datasets(super().__init__, self, args, kwargs)
        self.epochs = Epochs()
        self.add_callback(self.epochs)
        self.add_callback(SaveAfterEpoch())
        self.add_callback(KeepBest(self))
        self.add_callback(CheckEngine(self))
        check_arguments(self)
        if self.is_fsdp_enabled:
            choose_units(self.accelerator.state.fsdp_plugin, self.model)
        sharding.join(self.tpo, self.model)
        if self.thaws_tpo and hasattr(self.model, "peft_config") and not _trains(self.tpo):
            for name, parameter in self.tpo.named_parameters():
                parameter.requires_grad_(name in self.tpo.trainable)
        # The loss that comes out of compute_loss is normalised already: the trainer must not divide it by the steps.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        if self.is_deepspeed_enabled and not SEES_WHOLE_STEP:
            # Or accelerate 0.34 enters no_sync, which ZeRO-2 and 3 refuse: their engine accumulates by itself.
            self.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True
        self._pending: list[Any] = []

    @property
    def tpo(self) -> TaskPreferenceModel:
        """The task preference model of the model that is trained."""
        return self.model.tpo

    @property
    def runs_in_step(self) -> bool:
        """Whether an engine trains (DeepSpeed, FSDP) under which all ranks have to run the same modules."""
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    # -- counting the targets of a step --------------------------------------------------------------------------------

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """All micro-batches of a step, each with the counts of the whole step (transformers >= 4.46)."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        counts = self._count_step(batches)
        return batches, torch.tensor(counts.mllm, device=self.accelerator.device)

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The base trainer's step; behind the last micro-batch the gradients are looked at, before they are clipped."""
        loss = self._training_step(model, inputs, *args, **kwargs)
        if self._records and len(self._losses) == len(self._records) and not self._engine_checks:
            self._check_gradients()
        return loss

    def _training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """On transformers 4.45 micro-batches wait here until the step is whole, and run together."""
        if SEES_WHOLE_STEP:
            return super().training_step(model, inputs, *args, **kwargs)
        self._pending.append(inputs)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.accelerator.device)
        batches, self._pending = self._pending, []
        self._count_step(batches)
        losses: list[Tensor] = []
        for batch in batches:
            last = len(losses) == len(batches) - 1
            # DeepSpeed counts the micro-batches itself.
            with contextlib.nullcontext() if last or self.is_deepspeed_enabled else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, batch))
        return torch.stack(losses).sum()

    def _count_step(self, batches: list[Any]) -> Counts:
        """Counts targets over all micro-batches and ranks, at least 1 of each kind, and puts them into every batch."""
        if self.accelerator.num_processes > 1 and batches:
            share_media(self, batches)
        device = self.accelerator.device
        counts = count_step(
            self.tpo,
            batches,
            lambda total: self.accelerator.reduce(total.to(device), "sum"),
            scale=self._scale(),
            measure=(self.state.global_step + 1) % max(int(self.state.logging_steps or 1), 1) == 0,
            logits=self._computes_loss,
        )
        if self.state.global_step == 0:
            start_triggers(self, batches)
        self._watch_step(batches)
        return counts

    def _scale(self) -> int:
        ranks = self.accelerator.num_processes
        if not SEES_WHOLE_STEP:
            return ranks * self.args.gradient_accumulation_steps
        return 1 if self.args.average_tokens_across_devices else ranks

    def _prepare_inputs(self, inputs: Any) -> Any:
        """The base trainer's inputs; what belongs to tasks keeps its precision, which DeepSpeed's would coarsen."""
        tasks = {name: inputs[name] for name in ("task_inputs", "task_targets") if name in inputs}
        others = {name: value for name, value in inputs.items() if name not in tasks}
        return super()._prepare_inputs(others) | send_to_device(tasks, self.args.device)

    # -- the loss ------------------------------------------------------------------------------------------------------

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The base trainer's loss, which must be the one that the model returns."""
        base = super().compute_loss
        if trl_class(type(self)) is not None:
            # TRL's loss comes from its fused head, which never calls the output embedding: no trigger would be trained.
            base = functools.partial(transformers.Trainer.compute_loss, self)
        self._forget_output()
        if "task_counts" not in inputs:  # evaluation: every loss is a mean over the batch
            kwargs.pop("num_items_in_batch", None)
            return base(model, inputs, return_outputs=return_outputs, **kwargs)
        labelled = inputs.get("labels") is not None  # a base may take them out of its inputs
        loss, outputs = base(model, inputs, return_outputs=True, **kwargs)
        result = self.tpo.last_output
        own = None if result is None else result.loss
        lost = TPOError(
            f"{type(self).__name__} trains on a loss that is not the one the model returns, so the losses of TPO "
            "would be lost; its compute_loss must use model(**inputs).loss, or transformers.Trainer.compute_loss"
        )
        if result is None or own is None or (labelled and "assign" not in result.losses):
            raise lost
        if self._computes_loss:
            share = self._share(loss, own)
            if share is None:
                raise lost
            loss = loss + (self._whole_share - share) * own
            self._warn_of_share(share)
        self._record(result)
        loss = self._watch_loss(loss, result)
        return (loss, outputs) if return_outputs else loss

    # -- refusals ------------------------------------------------------------------------------------------------------

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses to train what can never learn."""
        if not _trains(self.tpo):
            raise TPOError(
                "nothing in model.tpo is trainable, so heads and task tokens cannot learn: call "
                "model.tpo.requires_grad_(True)"
            )
        self._check_triggers()
        return super().create_optimizer(*args, **kwargs)

    def _check_triggers(self) -> None:
        if self.tpo.config.weight("assign") > 0 and not can_learn_triggers(self.model):
            raise TPOError(
                "no trainable parameter decides whether a trigger is emitted, so the assignment loss can never fall: "
                "train the triggers' output rows (model.tpo.embeddings), LoRA or the host, or set "
                "loss_weights={'assign': 0}"
            )

    def get_train_dataloader(self) -> Any:
        """The base trainer's loader, of a dataset that is told its epoch by `epochs` alone."""
        dataset = self.epochs.dataset = self.train_dataset
        self.train_dataset = without_set_epoch(dataset)
        try:
            loader = not_dispatched(super().get_train_dataloader())
        finally:
            self.train_dataset = dataset
        steps = self.args.gradient_accumulation_steps
        if not SEES_WHOLE_STEP and hasattr(loader.dataset, "__len__") and len(loader) < steps:
            raise TPOError(
                f"an epoch has {len(loader)} micro-batches and gradient_accumulation_steps is {steps}; transformers "
                f"{transformers.__version__} would step on parts of them: use at most {len(loader)} accumulation steps"
            )
        return loader

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """The base trainer's loader."""
        return not_dispatched(super().get_eval_dataloader(*args, **kwargs))

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """The base trainer's loader."""
        return not_dispatched(super().get_test_dataloader(*args, **kwargs))

    def _remove_unused_columns(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        kept = super()._remove_unused_columns(dataset, *args, **kwargs)
        check_kept(set(dataset.column_names), set(kept.column_names))
        return kept

    def _get_collator_with_removed_columns(self, data_collator: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.args.remove_unused_columns:
            return data_collator
        self._set_signature_columns_if_needed()
        return CheckColumns(data_collator, frozenset(self._signature_columns))


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
