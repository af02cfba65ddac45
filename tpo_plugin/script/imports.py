"""Hooks on the imports of a script: some modules of libraries are changed right after they ran. No torch in here."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from types import ModuleType
from typing import Any

from tpo_plugin.script.settings import ScriptSettings

Hook = Callable[[ModuleType, ScriptSettings], None]


def install() -> None:
    """Waits for what a script imports to train with, in this process, if `tpo run` started it."""
    settings = ScriptSettings.from_environment()
    if settings is not None:
        sys.meta_path.insert(0, _Waiting(settings))


class _Waiting(importlib.abc.MetaPathFinder):
    """Finds modules as the other finders do, and has some of them changed right after they ran."""

    def __init__(self, settings: ScriptSettings) -> None:
        self.settings = settings

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in HOOKS:
            return None
        others = (f for f in sys.meta_path if f is not self and hasattr(f, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        execute, hook = spec.loader.exec_module, HOOKS[fullname]

        def exec_module(module: ModuleType) -> None:
            execute(module)
            hook(module, self.settings)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _hook_trainer(module: ModuleType, settings: ScriptSettings) -> None:
    """Every trainer of the script is made as a subclass of its own class."""
    base = module.Trainer

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        from tpo_plugin.script.loops import note_trainer
        from tpo_plugin.script.trainer import trainer_class

        note_trainer()
        return object.__new__(trainer_class(cls, settings, args, kwargs))

    base.__new__ = staticmethod(new)


def _hook_tokenizers(module: ModuleType, settings: ScriptSettings) -> None:
    """Tokenizers get the heads' tokens when they are loaded: a script may tokenise before it makes its trainer."""
    base = module.PreTrainedTokenizerBase
    load = base.from_pretrained.__func__

    @wraps(load)
    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        from tpo_plugin.script.trainer import add_head_tokens

        tokenizer = load(cls, *args, **kwargs)
        add_head_tokens(tokenizer, settings)
        return tokenizer

    base.from_pretrained = classmethod(from_pretrained)


def _hook_datasets(module: ModuleType, settings: ScriptSettings) -> None:
    from tpo_plugin.script.maps import hook_datasets

    hook_datasets(module, settings)


def _hook_accelerate(module: ModuleType, settings: ScriptSettings) -> None:
    from tpo_plugin.script.loops import hook_accelerate

    hook_accelerate(module, settings)


def _hook_lightning(module: ModuleType, settings: ScriptSettings) -> None:
    from tpo_plugin.script.loops import hook_lightning

    hook_lightning(module, settings)


HOOKS: dict[str, Hook] = {
    "transformers.trainer": _hook_trainer,
    "transformers.tokenization_utils_base": _hook_tokenizers,
    "datasets.arrow_dataset": _hook_datasets,
    "datasets.iterable_dataset": _hook_datasets,
    "accelerate.accelerator": _hook_accelerate,
    "lightning.pytorch.trainer.trainer": _hook_lightning,
    "pytorch_lightning.trainer.trainer": _hook_lightning,
}
"""What is done to a module after it ran. To follow another library, add one line."""
