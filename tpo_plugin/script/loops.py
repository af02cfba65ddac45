"""Training loops without a transformers Trainer, in which there is no class to replace: they need two lines."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
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


def hook_accelerate(module: ModuleType, settings: ScriptSettings) -> None:
    """`Accelerator.prepare` of a language model that no trainer has."""
    module.Accelerator.prepare = _checked(module.Accelerator.prepare, "accelerate.Accelerator", settings)


def hook_lightning(module: ModuleType, settings: ScriptSettings) -> None:
    """`Trainer.fit` of Lightning."""
    module.Trainer.fit = _checked(module.Trainer.fit, "lightning.Trainer", settings)


def _checked(original: Callable[..., Any], name: str, settings: ScriptSettings) -> Callable[..., Any]:
    @wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        models = [m for given in (*args, *kwargs.values()) if hasattr(given, "modules") for m in given.modules()]
        if any(hasattr(m, "tpo") for m in models):
            settings.mark(name)
        elif not made and any(hasattr(m, "get_output_embeddings") for m in models):
            raise TPOError(
                f"tpo run: this script trains with {name} and a loop of its own, in which there is no transformers "
                f"Trainer to put TPO into; add to it:{LINES.format(heads=settings.heads)}"
            )
        return original(self, *args, **kwargs)

    return method
