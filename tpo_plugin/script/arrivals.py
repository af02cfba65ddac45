"""Nothing is lost in silence: do the tasks that a script's data have arrive at its model, and the losses with them?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from tpo_plugin.errors import TPOError
from tpo_plugin.script import maps
from tpo_plugin.script.samples import num_with_tasks

logger = logging.getLogger(__name__)

PATIENCE = 20
"""Steps without a task after which a run stops, if two logging intervals are not longer."""

PROBES = 32
"""Samples that are looked at before the first step, where nobody knows which have tasks."""

HOW = (
    "give them in the rows that the trainer reads, as a column 'tasks' with a placeholder for each in the text, or by "
    "tpo run --data with the id of each row"
)


class Arrivals:
    """The tasks that are expected in a trainer's batches, and those that came."""

    def __init__(self, trainer: Any, by_id: Mapping[str, Any]) -> None:
        self.trainer, self.by_id = trainer, by_id
        self.expected: int | None = None
        """Records with tasks in the training data; None where nobody knows."""
        self.rows, self.steps = 0, 0
        """Rows with tasks that came, on this rank, and steps."""

    def expect(self) -> None:
        """Before the first step. Raises `TPOError` where no task can come."""
        dataset = self.trainer.train_dataset
        self.rows, self.steps = 0, 0
        if hasattr(dataset, "__len__") and not len(dataset):
            raise TPOError("the dataset that the trainer got has no record: are its file and its split the right ones?")
        self.expected = num_with_tasks(dataset, self.by_id)
        if self.expected == 0:
            raise TPOError(f"none of the {len(dataset)} rows that the trainer got has tasks{self._met()}; {HOW}")
        if self.expected is None and any(maps.met.values()) and hasattr(dataset, "__len__"):
            number = len(dataset)
            chosen = range(0, number, max(1, number // PROBES))[:PROBES]
            if not any(_tasks_in(self.trainer.data_collator([dataset[index]])) for index in chosen):
                raise TPOError(f"none of {len(chosen)} rows that the trainer got has tasks{self._met()}; {HOW}")

    def add(self, batches: list[Any]) -> None:
        """The batches of a step. Raises `TPOError` where none had a task for long."""
        self.rows += sum(_tasks_in(batch) for batch in batches)
        self.steps += bool(batches)
        if self.steps == max(PATIENCE, 2 * int(self.trainer.state.logging_steps or 1)):
            self._check()

    def finish(self) -> None:
        """After the last step. Raises `TPOError` where none had a task, and warns where tasks are missing."""
        if not self.steps:
            return
        came = self._check()
        epochs = int(self.trainer.state.epoch or 0)
        if self.expected and came < epochs * self.expected:
            logger.warning(
                "tpo run: of %d rows with tasks %d came in %d epoch(s): the trainer left the others out, or took other "
                "rows in their place",
                self.expected,
                came,
                epochs,
            )

    def _check(self) -> int:
        accelerator = self.trainer.accelerator
        came = int(accelerator.reduce(torch.tensor(self.rows, device=accelerator.device), "sum"))
        if not came:
            known = "" if self.expected is None else f", though {self.expected} of its rows have tasks"
            raise TPOError(f"no task came in {self.steps} step(s) of training{known}{self._met()}; {HOW}")
        return came

    def _met(self) -> str:
        """Where rows with tasks were met before."""
        found = [f"{number} rows with tasks went into {name}" for name, number in maps.met.items() if number]
        return f" ({', '.join(found)}, by Dataset.map)" if found else ""


def _tasks_in(batch: Any) -> int:
    """Number of rows with tokens of heads in a batch."""
    positions = batch.get("task_positions") if isinstance(batch, Mapping) else None
    if positions is None:
        return 0
    return len({row for kind, _, places in positions.by_token() if kind != "trigger" for row, _ in places})


def check_rows_stay_apart(trainer: Any) -> None:
    """Raises `TPOError` for a trainer that joins rows in its collator."""
    for holder in (trainer.args, trainer.data_collator):
        for name in ("padding_free", "packing", "sample_packing"):
            if getattr(holder, name, None) is True:
                raise TPOError(maps.PACKED.format(name=f"{name}=True of {type(holder).__name__}"))


def check_labels(trainer: Any, inputs: Mapping[str, Any]) -> None:
    """Raises `TPOError` where a codebase cut the labels and not the ids: a task token's place is counted in these."""
    ids, labels = inputs.get("input_ids"), inputs.get("labels")
    if not trainer.tpo.host.decodes and ids is not None and labels is not None and ids.shape != labels.shape:
        raise TPOError(
            f"{type(trainer).__name__} feeds input_ids {tuple(ids.shape)} with labels {tuple(labels.shape)}; expected "
            "the same shape: switch off what cuts them (as use_logits_to_keep)"
        )
