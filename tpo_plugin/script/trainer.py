"""The trainer of a script that `tpo run` started: its own class, with TPO put onto its model when it is made."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from tpo_plugin.apply import apply_tpo, head_config
from tpo_plugin.errors import TPOError
from tpo_plugin.plugins import registry
from tpo_plugin.script.rows import TaskCollator, TaskDataset
from tpo_plugin.script.settings import ScriptSettings
from tpo_plugin.tokens import add_tokens, resolve_tokens
from tpo_plugin.training.trainer import TPOTrainerMixin, wrap_trainer

logger = logging.getLogger(__name__)


def add_head_tokens(tokenizer: Any, settings: ScriptSettings) -> None:
    """Puts the heads' tokens into a tokenizer that the script loads."""
    specs, config = [registry().head(name) for name in settings.heads], settings.tpo_config()
    names = resolve_tokens(specs, {spec.name: head_config(spec, config) for spec in specs})
    try:
        add_tokens(tokenizer, names)
    except TPOError as error:  # it may be the tokenizer of another model; if it is the host's, apply_tpo will say so
        logger.debug("no tokens for %s: %s", type(tokenizer).__name__, error)


def trainer_class(base: type, settings: ScriptSettings, args: tuple, kwargs: dict[str, Any]) -> type:
    """The class to make in the place of `base`, for these arguments of it; `base` itself where it trains TPO already.

    Raises `TPOError` for a trainer that cannot.
    """
    if issubclass(base, TPOTrainerMixin):
        return base
    model = _arguments(base, args, kwargs).get("model")
    patch = registry().patch_for(_unwrapped(model)) if isinstance(model, nn.Module) else None
    wrapped = wrap_trainer(base if patch is None else patch.host_class().trainer_class(base))
    namespace = {"__module__": base.__module__, "tpo_script": settings}
    return type(wrapped.__name__, (ScriptTrainerMixin, wrapped), namespace)


class ScriptTrainerMixin(TPOTrainerMixin):
    """Puts TPO onto the model that the trainer is made with, and has its rows' `tasks` read."""

    tpo_script: ScriptSettings
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = _arguments(type(self), args, kwargs)
        model, make = given.get("model"), given.get("model_init")
        tokenizer = _tokenizer(given)
        if isinstance(model, nn.Module):
            self._apply(model, tokenizer)
        elif make is not None:
            given["model_init"] = self._applied(make, tokenizer)
        else:
            raise TPOError(
                f"tpo run: {type(self).__name__} was made with model={model!r}; expected the model itself, or "
                "model_init"
            )
        super().__init__(**given)
        self.train_dataset = self._with_tasks(self.train_dataset)
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: self._with_tasks(dataset) for name, dataset in self.eval_dataset.items()}
        else:
            self.eval_dataset = self._with_tasks(self.eval_dataset)
        self.data_collator = TaskCollator(self.tpo, self.data_collator)
        self.tpo_script.mark(type(self).__name__)

    def _apply(self, model: Any, tokenizer: Any) -> None:
        if not hasattr(_unwrapped(model), "tpo"):
            apply_tpo(model, tokenizer, heads=self.tpo_script.heads, config=self.tpo_script.tpo_config())
            logger.warning("tpo run: heads %s on %s", self.tpo_script.heads, type(_unwrapped(model)).__name__)

    def _applied(self, make: Callable[..., Any], tokenizer: Any) -> Callable[..., Any]:
        @functools.wraps(make)
        def model_init(*args: Any, **kwargs: Any) -> Any:
            model = make(*args, **kwargs)
            self._apply(model, tokenizer)
            return model

        return model_init

    def _with_tasks(self, dataset: Any) -> Any:
        attribute = self.tpo.host.records
        if attribute is None or not hasattr(dataset, attribute):
            return dataset
        return TaskDataset(dataset, self.tpo)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The base trainer's training; then TPO is saved, since a script may save the host without the trainer."""
        result = super().train(*args, **kwargs)
        self._save_tpo(self.args.output_dir)
        return result

    # A script may have columns that its trainer shall drop; of ours nothing is dropped.

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "tasks" not in self._signature_columns:
            self._signature_columns += ["tasks"]

    def _remove_unused_columns(self, *args: Any, **kwargs: Any) -> Any:
        return super(TPOTrainerMixin, self)._remove_unused_columns(*args, **kwargs)

    def _get_collator_with_removed_columns(self, *args: Any, **kwargs: Any) -> Any:
        return super(TPOTrainerMixin, self)._get_collator_with_removed_columns(*args, **kwargs)


def _arguments(cls: type, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by name: positional ones have the names of the first `__init__` that has any, in the MRO."""
    if not args:
        return dict(kwargs)
    for owner in cls.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = list(inspect.signature(vars(owner)["__init__"]).parameters.values())[1:]
        names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        if len(names) >= len(args):
            return dict(zip(names, args, strict=False)) | dict(kwargs)
    raise TPOError(f"{cls.__name__} was made with {len(args)} positional arguments, more than any __init__ of it takes")


def _tokenizer(given: Mapping[str, Any]) -> Any:
    """The script's tokenizer or processor, where the trainer, its collator or its dataset has one."""
    holders = [given.get("data_collator"), given.get("train_dataset")]
    found = [given.get("processing_class"), given.get("tokenizer")]
    found += [getattr(holder, name, None) for holder in holders for name in ("processor", "tokenizer")]
    return next((item for item in found if hasattr(item, "get_vocab") or hasattr(item, "tokenizer")), None)


def _unwrapped(model: Any) -> Any:
    base = getattr(model, "get_base_model", None)
    return base() if callable(base) else model
