"""Training loops without a transformers Trainer, of Accelerate and of Lightning. No torch in here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from inspect import signature
from types import ModuleType
from typing import Any

from tpo_plugin.errors import TPOError
from tpo_plugin.script.settings import ScriptSettings

LINES = """
    from tpo_plugin import apply_tpo
    from tpo_plugin.script.rows import TaskCollator
    model = apply_tpo(model, tokenizer, heads={heads})  # before the optimizer is made
    collate = TaskCollator(model.tpo, collate)  # your collator; rows keep their field "tasks"
    loss = model(**batch).loss  # as before: it has the losses of the heads in it
    model.tpo.save_pretrained(output_dir)  # beside the model"""

made = False
"""Whether a trainer that trains TPO was made in this process."""


def note_trainer() -> None:
    """From now on this process may use Accelerate: its trainer does."""
    global made
    made = True


# -- Accelerate --------------------------------------------------------------------------------------------------------


def hook_accelerate(module: ModuleType, settings: ScriptSettings) -> None:
    """`Accelerator.prepare` of a language model that no trainer has gives it TPO, and what belongs to it."""
    accelerator = module.Accelerator
    prepare, backward, skip = accelerator.prepare, accelerator.backward, accelerator.skip_first_batches
    accelerator.tpo_loop = None

    @wraps(prepare)
    def prepared(self: Any, *args: Any, **kwargs: Any) -> Any:
        model = None if made else _language_model(args, "accelerate.Accelerator", settings)
        if model is None:
            return prepare(self, *args, **kwargs)
        if self.tpo_loop is not None:
            raise _refused("accelerate.Accelerator", "for 2 language models at once", settings)
        self.tpo_loop = loop = _accelerate_loop(self, model, args, settings)
        for loader in _loaders(args):
            loop.read(loader)
        result = prepare(self, *args, **kwargs)
        for given, item in zip(args, result if isinstance(result, tuple) else (result,), strict=True):
            if any(given is loader for loader in _loaders(args)):
                loop.count(item.base_dataloader, trains=lambda: model.training)
        return result

    @wraps(skip)
    def skipping(self: Any, *args: Any, **kwargs: Any) -> Any:
        """A new loader, for the rest of an epoch."""
        result, loop = skip(self, *args, **kwargs), self.tpo_loop
        if loop is not None:
            loop.count(getattr(result, "base_dataloader", result), trains=lambda: loop.model.training)
        return result

    @wraps(backward)
    def checked(self: Any, loss: Any, *args: Any, **kwargs: Any) -> Any:
        if self.tpo_loop is not None:
            if not self.tpo_loop.model.training:
                raise TPOError(
                    "tpo run: this loop trains a model in evaluation mode, in which its batches cannot be told from "
                    "those of an evaluation: call model.train() before it reads its loader"
                )
            self.tpo_loop.check_loss(loss)
        return backward(self, loss, *args, **kwargs)

    accelerator.prepare, accelerator.backward, accelerator.skip_first_batches = prepared, checked, skipping
    for name, place in (("save_state", "output_dir"), ("save_model", "save_directory")):
        setattr(accelerator, name, _saving(getattr(accelerator, name), place))


def _accelerate_loop(accelerator: Any, model: Any, args: tuple[Any, ...], settings: ScriptSettings) -> Any:
    from torch.optim import Optimizer

    from tpo_plugin.script.loop_parts import Loop, Runner

    optimizers, loaders = list(_found(args, Optimizer)), _loaders(args)
    kind = str(accelerator.distributed_type.value)
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise _refused("accelerate.Accelerator", f"under {kind}", settings)
    if not (optimizers and loaders):
        reason = "which gives Accelerator.prepare its model without its optimizer and its loaders, in one call"
        raise _refused("accelerate.Accelerator", reason, settings)
    runner = Runner(
        name="accelerate.Accelerator",
        accumulation=lambda: accelerator.gradient_accumulation_steps,
        num_ranks=accelerator.num_processes,
        add_ranks=lambda total: accelerator.reduce(total.to(accelerator.device), "sum"),
        saves=accelerator.is_main_process,
    )
    loop = Loop(model, settings, runner)
    loop.add_to(optimizers)
    return loop


def _saving(original: Callable[..., Any], place: str) -> Callable[..., Any]:
    parameters = signature(original)

    @wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if self.tpo_loop is not None:
            self.tpo_loop.save(result or parameters.bind(self, *args, **kwargs).arguments[place])
        return result

    return method


# -- Lightning ---------------------------------------------------------------------------------------------------------


def hook_lightning(module: ModuleType, settings: ScriptSettings) -> None:
    """`Trainer.fit` of a module that holds a language model gives it TPO, and what belongs to it."""
    fit = module.Trainer.fit
    parameters = signature(fit)

    @wraps(fit)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = parameters.bind(self, *args, **kwargs).arguments
        model = None if made else _language_model([given.get("model")], "lightning.Trainer", settings)
        if model is not None:
            _into_lightning(self, model, given, settings)
        return fit(self, *args, **kwargs)

    module.Trainer.fit = method


def _into_lightning(trainer: Any, model: Any, given: dict[str, Any], settings: ScriptSettings) -> None:
    from torch.optim import Optimizer

    from tpo_plugin.script.loop_parts import Loop, Runner

    module, strategy = given["model"], type(trainer.strategy).__name__
    if not module.automatic_optimization or any(part in strategy for part in ("FSDP", "DeepSpeed", "ModelParallel")):
        reason = f"under {strategy}" if module.automatic_optimization else "which steps its optimizers by itself"
        raise _refused("lightning.Trainer", reason, settings)
    runner = Runner(
        name="lightning.Trainer",
        accumulation=lambda: trainer.accumulate_grad_batches,
        num_ranks=trainer.world_size,
        add_ranks=lambda total: trainer.strategy.reduce(total.to(trainer.strategy.root_device), reduce_op="sum"),
        saves=trainer.is_global_zero,
    )
    loop = Loop(model, settings, runner)

    def prepared(loaders: Any) -> Any:
        for loader in _loaders(loaders):
            loop.read(loader)
        return loaders

    def counted(loaders: Any) -> Any:
        for loader in _loaders(prepared(loaders)):
            loop.count(loader, trains=lambda: True)
        return loaders

    def with_ours(made: Any) -> Any:
        loop.add_to(list(_found(made, Optimizer)))
        return made

    def checked(loss: Any) -> Any:
        loop.check_loss(loss.get("loss") if isinstance(loss, dict) else loss)
        return loss

    counted(given.get("train_dataloaders"))
    prepared(given.get("val_dataloaders"))
    holders: list[Any] = [module, given.get("datamodule"), given.get("train_dataloaders")]
    for holder in holders:
        if hasattr(holder, "train_dataloader"):
            holder.train_dataloader = _then(holder.train_dataloader, counted)
            holder.val_dataloader = _then(holder.val_dataloader, prepared)
    module.configure_optimizers = _then(module.configure_optimizers, with_ours)
    module.training_step = _then(module.training_step, checked)


def _then(original: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    @wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        return change(original(*args, **kwargs))

    return method


# -- both --------------------------------------------------------------------------------------------------------------


def _language_model(given: Any, name: str, settings: ScriptSettings) -> Any:
    """The one that a loop trains, without TPO; None where there is none, or has TPO. Raises `TPOError` for several."""
    found = []
    for item in given:
        modules = list(item.modules()) if hasattr(item, "modules") else []
        if any(hasattr(module, "tpo") for module in modules):
            settings.mark(name)
            return None
        languages = (module for module in modules if _speaks(module))
        found += [m for m in languages if any(p.requires_grad for p in m.parameters())][:1]
    if len(found) > 1:
        raise _refused(name, f"for {len(found)} language models at once", settings)
    return found[0] if found else None


def _speaks(module: Any) -> bool:
    return hasattr(module, "get_output_embeddings") and module.get_output_embeddings() is not None


def _refused(name: str, reason: str, settings: ScriptSettings) -> TPOError:
    return TPOError(
        f"tpo run: this script trains with {name} and a loop of its own, {reason}, so TPO cannot be put into it from "
        f"outside; add to it:{LINES.format(heads=settings.heads)}"
    )


def _loaders(given: Any) -> list[Any]:
    from torch.utils.data import DataLoader

    return list(_found(given, DataLoader))


def _found(value: Any, kind: type) -> Iterator[Any]:
    """What is of a kind, in any nesting of lists and dicts."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _found(item, kind)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _found(item, kind)
