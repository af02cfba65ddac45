"""What the wrapped trainer refuses, because a loss would be lost in silence or weighted wrongly."""

from __future__ import annotations

from typing import Any

from accelerate.data_loader import DataLoaderDispatcher

from tpo_plugin.errors import TPOError
from tpo_plugin.training.fsdp import wraps_heads


def check_arguments(trainer: Any) -> None:
    """Raises `TPOError` for a model, or arguments of a trainer, that cannot train TPO."""
    args, model = trainer.args, trainer.model
    if not hasattr(model, "tpo"):
        raise TPOError(
            f"this {type(model).__name__} has no TPO: call apply_tpo(model, processor) before the trainer is made"
        )
    liger = getattr(args, "liger_kernel_config", None) or {}
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    trl = trl_class(type(trainer)) is not None
    fsdp = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    refused = {
        "label_smoothing_factor > 0: it takes the labels away from the model, and the assignment loss with them": (
            args.label_smoothing_factor != 0
        ),
        "compute_loss_func: it takes the labels away from the model; override compute_loss in a subclass instead": (
            getattr(trainer, "compute_loss_func", None) is not None
        ),
        "more than one GPU in one process (DataParallel), whose replicas lose the record of the losses: launch with "
        "torchrun or accelerate, or set CUDA_VISIBLE_DEVICES to one": args.n_gpu > 1,
        "Liger's fused cross entropy, which never calls the output embedding, so that no trigger is trained: set "
        "liger_kernel_config={'fused_linear_cross_entropy': False}": (
            args.use_liger_kernel and liger.get("fused_linear_cross_entropy", True)
        ),
        "tensor, context or sequence parallelism, under which targets would be counted more than once": (
            parallel is not None and parallel.non_data_parallel_size > 1
        ),
        "FSDP in its first version, which flattens the parameters of model.tpo: set fsdp_version to 2": (
            fsdp is not None and getattr(fsdp, "fsdp_version", 1) != 2
        ),
        "FSDP that wraps modules inside model.tpo, whose heads read their parameters: wrap classes of the host "
        "(TRANSFORMER_BASED_WRAP with transformer_layer_cls_to_wrap)": (
            fsdp is not None and wraps_heads(fsdp, trainer.tpo)
        ),
        "loss_type other than 'nll': the host's own cross entropy is used": (
            trl and getattr(args, "loss_type", "nll") != "nll"
        ),
        "TRL's own data collator, which drops task_inputs and task_targets: give data_collator=, with "
        "dataset_kwargs={'skip_prepare_dataset': True} and remove_unused_columns=False": (
            trl and not trainer.collates_tasks and type(trainer.data_collator).__module__.startswith("trl.")
        ),
    }
    for reason, found in refused.items():
        if found:
            raise TPOError(f"{type(trainer).__name__} cannot train TPO with {reason}")


def not_dispatched(loader: Any) -> Any:
    """The loader; raises `TPOError` where the main rank would slice batches for the others."""
    if isinstance(loader, DataLoaderDispatcher):
        raise TPOError(
            "dispatch_batches slices every tensor of the main rank's batch along its first dimension, which separates "
            "targets from their samples: set accelerator_config={'dispatch_batches': False}"
        )
    return loader


def check_kept(given: set[str], kept: set[str]) -> None:
    """Raises `TPOError` for columns of a dataset that a Trainer does not keep."""
    dropped = sorted(given - kept)
    if dropped:
        raise TPOError(
            f"the Trainer would drop the dataset's columns {dropped}, and any loss made from them: set "
            "remove_unused_columns=False in the training arguments, or remove those columns"
        )


class CheckColumns:
    """A collator that refuses samples with keys that the Trainer would drop."""

    def __init__(self, collator: Any, accepted: frozenset[str]) -> None:
        self.collator, self.accepted = collator, accepted

    def __call__(self, samples: list[Any]) -> Any:
        for sample in samples:
            if isinstance(sample, dict):
                check_kept(set(sample), set(self.accepted))
        return self.collator(samples)


def trl_class(trainer: type) -> str | None:
    """Name of the TRL trainer that a class is or derives from, or None."""
    names = (c.__name__ for c in trainer.__mro__ if c.__module__.startswith("trl."))
    return next((name for name in names if not name.startswith("_")), None)
