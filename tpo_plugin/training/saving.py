"""What a wrapped trainer saves and loads beside the base's checkpoints."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from tpo_plugin import sharding
from tpo_plugin.errors import TPOError
from tpo_plugin.files import load_weights
from tpo_plugin.host_weights import load_host_weights, save_host_weights, unsaved_by_peft
from tpo_plugin.training.checkpoints import (
    adapter_only,
    last_checkpoint,
    num_ranks,
    numpy_state_allowed,
    rotate,
)
from tpo_plugin.training.whole import check_whole, written_whole

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

logger = logging.getLogger(__name__)


class SavingMixin(_Trainer):
    """Keeps the files of TPO, and trained host weights that PEFT leaves out, in every checkpoint and saved model."""

    tpo: Any
    _start_sums: Any
    _sums_to_json: Any
    _restore_sums: Any
    _saved_to: str | None = None
    _writing_in: str | None = None
    _found_whole: str | None = None
    best_before: str | None = None
    """The best checkpoint of the training that goes on, where it lies now; None also where it is gone."""

    @property
    def _is_split(self) -> bool:
        """Whether ZeRO-3 or FSDP splits model.tpo: then all ranks save it together."""
        return bool(self.is_fsdp_enabled or sharding.split(self.tpo.parameters()))

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
        """The base trainer's, in a folder that is moved to its place when all of it is on the disk."""
        directory, name = Path(self._get_output_dir(trial=None)), f"checkpoint-{self.state.global_step}"
        with written_whole(directory / name, writer=self.args.should_save) as folder:
            self._writing_in = str(folder.parent)
            try:
                super()._save_checkpoint(*args, **kwargs)
                place = folder if self._is_split or any(folder.iterdir()) else directory / name
                if self._saved_to != str(place) and (self._is_split or place.is_dir()):  # a base that saves on its own
                    self._save_tpo(str(place))
            finally:
                self._writing_in = None
            if self.state.best_model_checkpoint == str(folder):
                self.state.best_model_checkpoint = str(directory / name)
                if self.args.should_save:
                    self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        self.rotate()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(directory / name))

    def rotate(self) -> None:
        """Deletes checkpoints until `save_total_limit` are left; see `checkpoints.rotate`."""
        if self.args.should_save:
            directory = self._get_output_dir(trial=None)
            rotate(directory, self.state.global_step, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _get_output_dir(self, trial: Any) -> str:
        return self._writing_in or super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Not before it stands in its place."""

    def _save_tpo(self, directory: str) -> None:
        if self.args.should_save or self._is_split:
            self.tpo.save_pretrained(directory)
            save_host_weights(self.model, directory, unsaved_by_peft(self.model))
            self._saved_to = directory

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        state = {"batch_size": self._batch_size, **self._sums_to_json()}
        path = Path(output_dir) / f"tpo_state_{self.args.process_index}.json"
        path.write_text(json.dumps(state) + "\n", encoding="utf-8")

    @property
    def _batch_size(self) -> int:
        """Samples in an optimizer step, on all ranks."""
        args = self.args
        return int(args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size)

    # -- going on ------------------------------------------------------------------------------------------------------

    def last_checkpoint(self, before: int | None = None) -> str | None:
        """`checkpoints.last_checkpoint` of this trainer's folder."""
        self._found_whole = last_checkpoint(self.args.output_dir, before)
        return self._found_whole

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """The base trainer's training. A checkpoint that is damaged is refused; of `True`, passed over."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.last_checkpoint()
            if resume_from_checkpoint is None:
                raise TPOError(
                    f"{self.args.output_dir} has no checkpoint; expected one, for resume_from_checkpoint=True"
                )
        elif resume_from_checkpoint and resume_from_checkpoint != self._found_whole:
            check_whole(Path(resume_from_checkpoint), "take another checkpoint")
        unsaved_by_peft(self.model)
        self._start_sums()
        self._total_loss, self._total_steps = 0.0, 0
        self.best_before = None
        if resume_from_checkpoint:
            self.take_up(str(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def take_up(self, checkpoint: str) -> None:
        """Goes on with what was measured since the last log line; on another number of ranks, if that can be.

        Raises `TPOError` where the batch of a step, or an optimizer that is split among the ranks, would be another.
        """
        before, here = num_ranks(checkpoint), self.args.world_size
        try:
            paths = [Path(checkpoint) / f"tpo_state_{rank}.json" for rank in range(before)]
            saved = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        except FileNotFoundError as error:
            raise TPOError(
                f"{checkpoint} has no optimizer, as save_only_model leaves it; a run cannot go on from it"
            ) from error
        if before != here:
            there = f"{checkpoint} was written by {before} rank(s), and here are {here}"
            if self.is_deepspeed_enabled:
                raise TPOError(f"{there}: DeepSpeed's optimizer is split among {before}; start as many ranks")
            if saved[0]["batch_size"] != self._batch_size:
                raise TPOError(
                    f"{there}: a step would have {self._batch_size} samples in place of {saved[0]['batch_size']}; set "
                    "gradient_accumulation_steps or per_device_train_batch_size so that ranks x both are the same"
                )
            if self.is_world_process_zero():
                logger.warning(
                    "%s: it goes on with the same %d samples in a step, and with random states, such as dropout's, "
                    "derived anew from seed, step and rank", there, self._batch_size
                )  # fmt: skip
        self._restore_sums(saved)
        best = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).best_model_checkpoint
        if best is not None:
            places = Path(checkpoint).parent / Path(best).name, Path(best)
            self.best_before = next((str(place) for place in places if place.is_dir()), None)
            if self.best_before is None:
                logger.warning("%s: its best checkpoint, %s, is gone; a better one may come", checkpoint, best)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and num_ranks(checkpoint) != self.args.world_size:
            seeds = np.random.SeedSequence([self.args.seed, self.state.global_step, self.args.process_index])
            set_seed(int(seeds.generate_state(1)[0]))
            return
        with numpy_state_allowed():
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        load_weights(self.tpo, resume_from_checkpoint)
        load_host_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        load_weights(self.tpo, self.state.best_model_checkpoint)
        load_host_weights(self.model, self.state.best_model_checkpoint)


class KeepBest(TrainerCallback):
    """Finds the best checkpoint again in a run that was moved: transformers forgets it, or fails at the end."""

    def __init__(self, trainer: SavingMixin) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The state has been read; without a training that goes on it names none yet."""
        state.best_model_checkpoint = self._trainer.best_before


class SaveAfterEpoch(TrainerCallback):
    """Puts off a checkpoint that is due in the last step of an epoch until what the epoch's end logs is in it.

    A Trainer that goes on from such a checkpoint begins with the next epoch, and would leave out that evaluation.
    """

    due = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The base's callback has said by now what is due."""
        ends = control.should_training_stop or control.should_epoch_stop or float(state.epoch).is_integer()
        self.due = control.should_save and ends and not control.should_evaluate
        control.should_save = control.should_save and not self.due

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Here the base evaluates before it saves."""
        control.should_save = control.should_save or self.due
        self.due = False
