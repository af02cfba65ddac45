"""TPO for a training script that knows nothing of it: the hooks that `tpo run` puts into its Python. No torch in here.

`tpo run` starts the script with `TPO_RUN` in its environment and the folder `startup` first on PYTHONPATH, whose
`sitecustomize` Python imports at its start; so does every process that the script's launcher starts. There the import
of two modules of transformers is waited for: tokenizers get the heads' tokens when they are loaded, and a Trainer, when
it is made, becomes one that puts TPO onto its model (`tpo_plugin.training.automatic`).
"""

from __future__ import annotations

import dataclasses
import importlib.abc
import importlib.machinery
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from tpo_plugin.config import TPOConfig, config_from_dict
from tpo_plugin.errors import TPOError

VARIABLE = "TPO_RUN"
STARTUP = Path(__file__).parent / "startup"
"""Folder of the `sitecustomize` that calls `install`."""


@dataclass(kw_only=True)
class AutoRun:
    """What `tpo run` tells the processes of the script."""

    heads: list[str]
    config: dict[str, Any] = field(default_factory=dict)
    """`loss_weights` and `heads`, the fields of `TPOConfig`."""
    marker: str = ""
    """File that gets a line for every trainer that trains TPO."""

    @classmethod
    def from_environment(cls) -> AutoRun | None:
        """The settings of the run that this process belongs to, or None."""
        text = os.environ.get(VARIABLE)
        return None if text is None else config_from_dict(cls, json.loads(text), where=VARIABLE)

    def environment(self) -> dict[str, str]:
        """Variables for the script, over those of this process."""
        paths = [str(STARTUP), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {VARIABLE: json.dumps(dataclasses.asdict(self)), "PYTHONPATH": os.pathsep.join(paths)}

    def tpo_config(self) -> TPOConfig:
        """The config for `apply_tpo`; raises `TPOError` for a field that there is not."""
        return config_from_dict(TPOConfig, dict(self.config), where="the configuration of tpo run")

    def mark(self, text: str) -> None:
        """Notes that a trainer trains TPO."""
        if self.marker:
            with open(self.marker, "a", encoding="utf-8") as file:
                file.write(f"{text}\n")


def read_config(path: Path) -> dict[str, Any]:
    """The YAML file of `tpo run --config`; raises `TPOError`."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise TPOError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise TPOError(f"{path} holds a {type(values).__name__}; expected loss_weights and heads, as in TPOConfig")
    config_from_dict(TPOConfig, values, where=str(path))
    return values


def install() -> None:
    """Waits for the import of transformers' trainer and tokenizers in this process, if `tpo run` started it."""
    run = AutoRun.from_environment()
    if run is not None:
        sys.meta_path.insert(0, _Waiting(run))


class _Waiting(importlib.abc.MetaPathFinder):
    """Finds modules as the other finders do, and has some of them changed right after they ran."""

    def __init__(self, run: AutoRun) -> None:
        self.hooks: dict[str, Callable[[ModuleType], None]] = {
            "transformers.trainer": lambda module: _hook_trainer(module, run),
            "transformers.tokenization_utils_base": lambda module: _hook_tokenizers(module, run),
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
        run_module, hook = spec.loader.exec_module, self.hooks[fullname]

        def exec_module(module: ModuleType) -> None:
            run_module(module)
            hook(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _hook_trainer(module: ModuleType, run: AutoRun) -> None:
    """Every trainer of the script is made as a subclass of its own class."""
    base = module.Trainer

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        from tpo_plugin.training.automatic import automatic

        return object.__new__(automatic(cls, run, args, kwargs))

    base.__new__ = staticmethod(new)


def _hook_tokenizers(module: ModuleType, run: AutoRun) -> None:
    """Tokenizers get the heads' tokens when they are loaded: a script may tokenise before it makes its trainer."""
    base = module.PreTrainedTokenizerBase
    load = base.from_pretrained.__func__

    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        from tpo_plugin.training.automatic import add_head_tokens

        tokenizer = load(cls, *args, **kwargs)
        add_head_tokens(tokenizer, run)
        return tokenizer

    from_pretrained.__doc__ = load.__doc__
    base.from_pretrained = classmethod(from_pretrained)
