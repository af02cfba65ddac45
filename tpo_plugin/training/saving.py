"""What a wrapped trainer saves and loads beside the base's checkpoints."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tpo_plugin import zero
from tpo_plugin.files import load_weights
from tpo_plugin.training.checkpoints import (
    adapter_only,
    load_host_weights,
    numpy_state_allowed,
    save_host_weights,
    unsaved_by_peft,
)

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class SavingMixin(_Trainer):
    """Keeps the files of TPO, and trained host weights that PEFT leaves out, in every checkpoint and saved model."""

    tpo: Any
    _saved_to: str | None = None

    @property
    def _is_split(self) -> bool:
        """Whether ZeRO-3 splits model.tpo: then all ranks save it together."""
        return bool(zero.split(self.tpo.parameters()))

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """The base trainer's saving."""
        super().save_model(output_dir, *args, **kwargs)
        if self._is_split:
            self._save_tpo(output_dir or self.args.output_dir)

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        with adapter_only(self.model):
            super()._save(output_dir, *args, **kwargs)
        if not self._is_split:  # not every rank may be here
            self._save_tpo(output_dir or self.args.output_dir)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        folder = os.path.join(self._get_output_dir(trial=None), f"checkpoint-{self.state.global_step}")
        if self._saved_to != folder and (self._is_split or os.path.isdir(folder)):  # a base that saves on its own
            self._save_tpo(folder)

    def _save_tpo(self, directory: str) -> None:
        if self.args.should_save or self._is_split:
            self.tpo.save_pretrained(directory)
            save_host_weights(self.model, directory, unsaved_by_peft(self.model))
            self._saved_to = directory

    def _load_rng_state(self, *args: Any, **kwargs: Any) -> None:
        with numpy_state_allowed():
            super()._load_rng_state(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        load_weights(self.tpo, resume_from_checkpoint)
        load_host_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        load_weights(self.tpo, self.state.best_model_checkpoint)
        load_host_weights(self.model, self.state.best_model_checkpoint)
