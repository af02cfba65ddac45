"""Tasks for the datasets and collators of other codebases, which know nothing of `tasks` and stay as they are.

A row that has `tasks` gets its placeholders replaced by tokens before it is tokenised. Behind the codebase's own
collator the batch gets what the heads make of the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from tpo_plugin.codec import asks_for_samples
from tpo_plugin.data.collate import collate_tasks
from tpo_plugin.data.dataset import Sample, read_sample
from tpo_plugin.data.encode import IGNORED
from tpo_plugin.data.format import RecordFormat
from tpo_plugin.data.media import VideoOptions
from tpo_plugin.data.records import Record, Turn, check_tasks, expand_turns, parse_record
from tpo_plugin.errors import RecordError, TPOError
from tpo_plugin.positions import Positions, text_groups, token_positions

SAMPLE = "tpo_sample"
"""Key of a row under which its tasks travel from dataset to collator."""

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_PROMPTS = ("prompt", "question", "instruction", "input", "query", "system")
"""Keys of a row whose text the user says; every other text of a row without roles is an answer."""


class TaskDataset(Dataset[Any]):
    """A dataset that holds a list of LLaVA records (`Host.records`); serves its samples with their tasks.

    Everything else is the dataset's own. A record whose tasks are wrong raises `RecordError`, also where the dataset
    itself would catch the error and take another record.
    """

    def __init__(self, dataset: Any, tpo: Any) -> None:
        self.dataset, host = dataset, type(tpo.host)
        self._num_frames = host.num_frames
        known = RecordFormat.of(tpo)
        self._records = _TaskRecords(getattr(dataset, host.records), known, partial(host.media_root, dataset))
        self._reads_media = any(asks_for_samples(codec) for codec in known.codecs.values())
        setattr(dataset, host.records, self._records)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self._records.start()
        try:
            sample = self.dataset[index]
        except Exception:
            self._records.read()
            raise
        record = self._records.read()
        if not self._reads_media or not any(turn.tasks for turn in record.turns):
            return {**sample, SAMPLE: Sample(record)}
        # As many frames as the dataset took, so that a head can match them with what the vision tower saw.
        frames = self._num_frames(sample)
        options = VideoOptions(num_frames=max(frames)) if frames else None
        return {**sample, SAMPLE: read_sample(record, options)}


class _TaskRecords(list[Any]):
    """Records as they were, except that one read by its index has tokens in the place of placeholders."""

    def __init__(self, records: Sequence[Any], tpo: Any, media_root: Callable[[Any], str | Path]) -> None:
        super().__init__(records)
        self.tpo, self.media_root = tpo, media_root
        self.last: Record | None = None
        """The one that was read last: the one that a sample is made of, also where a dataset skips unreadable media."""
        self.error: RecordError | None = None
        for index, data in enumerate(self):
            if data.get("tasks"):
                self[index]

    def start(self) -> None:
        """A sample is about to be read."""
        self.last = self.error = None

    def read(self) -> Record:
        """The record that the sample was made of. Raises `RecordError` where a record was wrong on the way."""
        if self.error is not None:
            raise self.error
        if self.last is None:
            raise TPOError(
                "the dataset made a sample without reading a record by its index, so its tasks are not known"
            )
        return self.last

    def __getitem__(self, index: Any) -> Any:
        data = super().__getitem__(index)
        if isinstance(index, slice):
            return data
        place = f"record {index}" + (f" (id {data['id']})" if "id" in data else "")
        if not data.get("tasks"):
            self.last = Record(str(data.get("id", place)), place, ())
            return data
        try:
            record = parse_record(data, self.tpo, media_root=self.media_root(data), file=place)
        except RecordError as error:
            self.error = error
            raise
        self.last = record
        turns = [
            {**turn, "value": text if "<video>" in turn["value"] else text.replace("<video>", "<image>")}
            for turn, text in zip(data["conversations"], (t.text for t in record.turns), strict=True)
        ]
        return {**data, "conversations": turns}


class TaskCollator:
    """A codebase's own collator, and behind it what the heads make of the rows' tasks.

    A row's tasks come from `TaskDataset`, or stand in the row itself as `tasks`: then its texts, under any keys and in
    any nesting of lists and dicts, get tokens for their placeholders; a row that is tokenised already must have them.
    Raises `TPOError` where a row of the batch has not the tokens that its tasks take.
    """

    def __init__(self, tpo: Any, collator: Callable[[list[Any]], Any]) -> None:
        self.format, self.tokens, self.special_ids = RecordFormat.of(tpo), tpo.tokens, tpo.special_ids
        self.collator = collator

    def __getattr__(self, name: str) -> Any:
        if name == "collator":
            raise AttributeError(name)
        return getattr(self.collator, name)

    def __call__(self, rows: list[Any]) -> Any:
        taken = [self._take(row, index) for index, row in enumerate(rows)]
        batch, samples = self.collator([row for row, _ in taken]), [sample for _, sample in taken]
        if not isinstance(batch, Mapping) or "input_ids" not in batch:
            return batch
        batch = dict(batch)  # a BatchEncoding of transformers 4.45 cannot be moved with dicts in it
        input_ids, labels = batch["input_ids"], batch.get("labels")
        if labels is not None:
            never = [i for t in self.tokens.values() for i in (t.task_id, t.input_id) if i is not None]
            labels = batch["labels"] = labels.masked_fill(torch.isin(input_ids, torch.tensor(never)), IGNORED)
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
        if not isinstance(row, Mapping):
            return row, Sample(Record(place, place, ()))
        row = dict(row)
        if SAMPLE in row:
            return row, row.pop(SAMPLE)
        tasks = row.pop("tasks", None)
        if not tasks:
            return row, Sample(Record(place, place, ()))
        row, turns = _expanded(row, tasks, self.format, place)
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
                            f"row of the batch has {found.count(row)}: cut off by the tokenizer's model_max_length, or "
                            f"tokenised before the placeholder <{name}> could be replaced"
                        )


def _expanded(row: dict[str, Any], tasks: Any, format: RecordFormat, place: str) -> tuple[dict[str, Any], list[Turn]]:
    """The row with tokens in its texts, and its turns; the k-th placeholder of a head takes that head's k-th task."""

    def wrong(field: str, message: str) -> RecordError:
        return RecordError(message, file=place, field=field)

    checked = check_tasks({"tasks": tasks}, format, Path("."), wrong)
    texts = [(role, text) for role, text in _texts(row) if format.placeholder.search(text)]
    if not texts and "input_ids" in row:  # tokenised already: everything is to be predicted, in its order
        return row, [Turn("assistant", "", tuple(checked))]
    turns = expand_turns(texts, checked, format, wrong)
    replaced = iter(turns)

    def replace(value: Any) -> Any:
        if isinstance(value, str) and format.placeholder.search(value):
            text = next(replaced).text
            return value[: len(value) - len(value.lstrip())] + text.strip() + value[len(value.rstrip()) :]
        if isinstance(value, Mapping):
            return {key: replace(item) for key, item in value.items()}
        return [replace(item) for item in value] if isinstance(value, (list, tuple)) else value

    return replace(row), turns


def _texts(value: Any, role: str | None = None) -> Iterator[tuple[str, str]]:
    """(role, text) of every text in a row, in its order."""
    if isinstance(value, str):
        yield role or "assistant", value
    elif isinstance(value, Mapping):
        said_by = _ROLES.get(str(value.get("role", value.get("from"))), role)
        for key, item in value.items():
            yield from _texts(item, said_by or ("user" if str(key) in _PROMPTS else None))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item, role)
