"""Hooks on the imports of a script: two modules of transformers are changed right after they ran. No torch in here."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from tpo_plugin.script.settings import ScriptSettings


def install() -> None:
    """Waits for the import of transformers' trainer and tokenizers in this process, if `tpo run` started it."""
    settings = ScriptSettings.from_environment()
    if settings is not None:
        sys.meta_path.insert(0, _Waiting(settings))


class _Waiting(importlib.abc.MetaPathFinder):
    """Finds modules as the other finders do, and has some of them changed right after they ran."""

    def __init__(self, settings: ScriptSettings) -> None:
        self.hooks: dict[str, Callable[[ModuleType], None]] = {
            "transformers.trainer": lambda module: _hook_trainer(module, settings),
            "transformers.tokenization_utils_base": lambda module: _hook_tokenizers(module, settings),
        }

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.hooks:
            return None
        others = (f for f in sys.meta_path if f is not self and hasattr(f, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        execute, hook = spec.loader.exec_module, self.hooks[fullname]

        def exec_module(module: ModuleType) -> None:
            execute(module)
            hook(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _hook_trainer(module: ModuleType, settings: ScriptSettings) -> None:
    """Every trainer of the script is made as a subclass of its own class."""
    base = module.Trainer

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        from tpo_plugin.script.trainer import trainer_class

        return object.__new__(trainer_class(cls, settings, args, kwargs))

    base.__new__ = staticmethod(new)


def _hook_tokenizers(module: ModuleType, settings: ScriptSettings) -> None:
    """Tokenizers get the heads' tokens when they are loaded: a script may tokenise before it makes its trainer."""
    base = module.PreTrainedTokenizerBase
    load = base.from_pretrained.__func__

    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        from tpo_plugin.script.trainer import add_head_tokens

        tokenizer = load(cls, *args, **kwargs)
        add_head_tokens(tokenizer, settings)
        return tokenizer

    from_pretrained.__doc__ = load.__doc__
    base.from_pretrained = classmethod(from_pretrained)
