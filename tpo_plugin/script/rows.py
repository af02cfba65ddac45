"""A collator of another codebase, which knows nothing of tasks and stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tpo_plugin.data.collate import collate_tasks
from tpo_plugin.data.dataset import Sample
from tpo_plugin.data.encode import IGNORED
from tpo_plugin.data.format import RecordFormat
from tpo_plugin.data.records import Record
from tpo_plugin.errors import TPOError
from tpo_plugin.positions import Positions, text_groups, token_positions
from tpo_plugin.script.expand import take_tasks
from tpo_plugin.script.literal import LiteralPlaceholders
from tpo_plugin.script.samples import SAMPLE, WithTasks


class TaskCollator:
    """A codebase's own collator, and behind it what the heads make of the rows' tasks.

    A row's tasks come from `TaskDataset`, from a `map` that carried them, or stand in the row itself as `tasks`: then
    its texts, under any keys and in any nesting of lists and dicts, get tokens for their placeholders. Raises
    `TPOError` where a row of the batch has not the tokens that its tasks take, and where the text of a placeholder
    would be fed to the model.
    """

    def __init__(self, tpo: Any, collator: Callable[[list[Any]], Any], by_id: Mapping[str, Any] | None = None) -> None:
        self.format, self.tokens, self.special_ids = RecordFormat.of(tpo), tpo.tokens, tpo.special_ids
        self.collator, self.by_id = collator, by_id or {}
        self.literal = LiteralPlaceholders(tpo.tokenizer, self.format, self.tokens)

    def __getattr__(self, name: str) -> Any:
        if name == "collator":
            raise AttributeError(name)
        return getattr(self.collator, name)

    def __call__(self, rows: list[Any]) -> Any:
        taken = [self._take(row, index) for index, row in enumerate(rows)]
        batch, samples = self.collator([row for row, _ in taken]), [sample for _, sample in taken]
        if not isinstance(batch, Mapping) or not isinstance(batch.get("input_ids"), Tensor):
            return batch
        batch = dict(batch)  # a BatchEncoding of transformers 4.45 cannot be moved with dicts in it
        input_ids, labels = batch["input_ids"], batch.get("labels")
        if labels is not None:
            never = [i for t in self.tokens.values() for i in (t.task_id, t.input_id) if i is not None]
            labels = batch["labels"] = labels.masked_fill(torch.isin(input_ids, torch.tensor(never)), IGNORED)
        self.literal.check(input_ids, [sample.record.place for sample in samples])
        positions = token_positions(input_ids, labels, self.tokens)
        self._check(samples, positions)
        targets, inputs = collate_tasks(self.format.codecs, samples)
        if targets:
            batch["task_targets"] = targets
        if inputs:
            batch["task_inputs"] = inputs
        if self.special_ids is not None:
            positions = replace(positions, text=text_groups(input_ids, labels, self.special_ids))
            batch["task_frames"] = [[len(clip.frames) for clip in sample.videos] for sample in samples]
        batch["task_positions"] = positions
        batch["task_records"] = [sample.record.place for sample in samples]
        return batch

    def _take(self, row: Any, index: int) -> tuple[Any, Sample]:
        """The row without its tasks, and these."""
        place = f"row {index} of the batch"
        if isinstance(row, WithTasks):
            return row.made, row.tasks
        if not isinstance(row, Mapping):
            return row, Sample(Record(place, place, ()))
        row = dict(row)
        if SAMPLE in row:
            return row, row.pop(SAMPLE)
        row, turns = take_tasks(row, self.format, self.by_id, place)
        return row, Sample(Record(str(row.get("id", place)), place, tuple(turns)))

    def _check(self, samples: list[Sample], positions: Positions) -> None:
        num_rows = positions.shape[0]
        if num_rows != len(samples) and any(turn.tasks for s in samples for turn in s.record.turns):
            raise TPOError(
                f"the collator made {num_rows} row(s) of {len(samples)} samples (packing), so tasks cannot be told "
                "apart by rows; expected one row for each sample"
            )
        for kind, role in (("task", "assistant"), ("input", "user")):
            for name, codec in self.format.codecs.items():
                found = [row for row, _ in positions.of(kind)[name]]
                for row, sample in enumerate(samples):
                    tasks = [t for turn in sample.record.turns if turn.role == role for t in turn.tasks]
                    expected = sum(codec.num_tokens(task) for task in tasks if task["head"] == name)
                    if found.count(row) != expected:
                        raise TPOError(
                            f"{sample.record.place}: its tasks take {expected} {kind} token(s) of head {name!r}, its "
                            f"row of the batch has {found.count(row)}: cut off by the tokenizer's model_max_length, "
                            f"without a placeholder <{name}> for each task, or tokenised before the placeholder "
                            "could be replaced"
                        )
