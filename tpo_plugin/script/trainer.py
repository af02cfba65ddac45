"""The trainer of a script that `tpo run` started: its own class, with TPO put onto its model when it is made."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel, TrainingArguments, set_seed

from tpo_plugin.apply import apply_tpo, head_config
from tpo_plugin.errors import TPOError
from tpo_plugin.plugins import registry
from tpo_plugin.positions import Counts
from tpo_plugin.script.arrivals import Arrivals, check_labels, check_rows_stay_apart
from tpo_plugin.script.expand import TASKS, ScriptTasks
from tpo_plugin.script.rows import TaskCollator
from tpo_plugin.script.samples import SAMPLE, with_tasks
from tpo_plugin.script.settings import ScriptSettings
from tpo_plugin.step import FORWARD_ARGUMENTS, TaskArguments
from tpo_plugin.tokens import add_tokens, resolve_tokens
from tpo_plugin.training.own_loss import SEES_WHOLE_STEP
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


def trainer_class(base: type, settings: ScriptSettings, args: tuple[Any, ...], kwargs: dict[str, Any]) -> type:
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

    collates_tasks = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = _arguments(type(self), args, kwargs)
        model, make = given.get("model"), given.get("model_init")
        tokenizer = _tokenizer(given)
        loading: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        seed = getattr(given.get("args"), "seed", TrainingArguments.seed)
        if isinstance(model, nn.Module):
            self._apply_seeded(model, tokenizer, seed)
        elif isinstance(model, str):
            loading = _first_loaded(lambda loaded: self._apply_seeded(loaded, tokenizer, seed))
        elif make is not None:
            given["model_init"] = self._applied(make, tokenizer)
        else:
            raise TPOError(
                f"tpo run: {type(self).__name__} was made with model={model!r}; expected the model itself, its name, "
                "or model_init"
            )
        with loading:
            super().__init__(**given)
        check_rows_stay_apart(self)
        if hasattr(self.args, "use_logits_to_keep"):  # it cuts labels and logits, and leaves the ids as they were
            self.args.use_logits_to_keep = False
        self.tpo.host.honours_num_items = False  # see compute_loss
        by_id = ScriptTasks.of(self.tpo_script).by_id
        self.train_dataset = with_tasks(self.train_dataset, self.tpo, by_id)
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: with_tasks(part, self.tpo, by_id) for name, part in self.eval_dataset.items()}
        else:
            self.eval_dataset = with_tasks(self.eval_dataset, self.tpo, by_id)
        self.data_collator = TaskCollator(self.tpo, self.data_collator, by_id)
        self._arrivals = Arrivals(self, by_id)
        self.tpo_script.mark(type(self).__name__)

    def _apply_seeded(self, model: Any, tokenizer: Any, seed: int) -> None:
        """New rows and heads are those of the trainer's seed, which it sets a moment too late for them."""
        set_seed(seed)
        self._apply(model, tokenizer)

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

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The base trainer's training; then TPO is saved, since a script may save the host without the trainer.

        Raises `TPOError` where no task can arrive, before the first step, and where none did.
        """
        self._arrivals.expect()
        result = super().train(*args, **kwargs)
        self._arrivals.finish()
        self._save_tpo(self.args.output_dir)
        return result

    def _count_step(self, batches: list[Any]) -> Counts:
        counts = super()._count_step(batches)
        self._arrivals.add(batches)
        return counts

    # The mean of each micro-batch is what any host gives, whatever a codebase does to its arguments: the number of
    # labels in the whole step is not passed to it, and the plugin makes sums of the means.

    def _scale(self) -> int:
        return self.accelerator.num_processes if SEES_WHOLE_STEP else super()._scale()

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The base trainer's loss, which must be the one that the model returns."""
        kwargs.pop("num_items_in_batch", None)
        check_labels(self, inputs)
        ours = {name: inputs[name] for name in FORWARD_ARGUMENTS if name in inputs}
        with self.tpo.hooks.now.offering(TaskArguments.taken(ours, list(self.tpo.heads))):
            return super().compute_loss(model, inputs, *args, **kwargs)

    # A script may have columns that its trainer shall drop; of ours nothing is dropped.

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        ours = [*TASKS, SAMPLE, *(["id"] if self.tpo_script.data else [])]
        self._signature_columns += [name for name in ours if name not in self._signature_columns]

    def _remove_unused_columns(self, *args: Any, **kwargs: Any) -> Any:
        return super(TPOTrainerMixin, self)._remove_unused_columns(*args, **kwargs)

    def _get_collator_with_removed_columns(self, *args: Any, **kwargs: Any) -> Any:
        return super(TPOTrainerMixin, self)._get_collator_with_removed_columns(*args, **kwargs)


@contextlib.contextmanager
def _first_loaded(apply: Callable[[Any], None]) -> Iterator[None]:
    """Within it the first model that is loaded gets TPO: that of a trainer that loads its own, by its name."""
    original = PreTrainedModel.__dict__["from_pretrained"]
    waiting = True

    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        nonlocal waiting
        loaded = original.__func__(cls, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if waiting:
            waiting = False
            apply(model)
        return loaded

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = original


def _arguments(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
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
