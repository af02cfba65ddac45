"""Datasets of other codebases that hold their records and make samples of them, in which tasks would be lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from tpo_plugin.codec import asks_for_samples
from tpo_plugin.data.dataset import Sample, read_sample
from tpo_plugin.data.format import RecordFormat
from tpo_plugin.data.media import VideoOptions
from tpo_plugin.data.records import Record, parse_record
from tpo_plugin.errors import RecordError, TPOError
from tpo_plugin.script.expand import COLUMN, TASKS, take_tasks
from tpo_plugin.script.maps import count_tasks

logger = logging.getLogger(__name__)

SAMPLE = "tpo_sample"
"""Key of a sample under which its tasks travel from dataset to collator."""


@dataclass(frozen=True)
class WithTasks:
    """What a dataset made of a record, where that is no dict with a place for tasks, and the record's tasks."""

    made: Any
    tasks: Sample


def with_tasks(dataset: Any, tpo: Any, by_id: Mapping[str, Any]) -> Any:
    """The dataset, or one in its place, whose samples have the tasks of the records that it holds.

    Records are found by what they are: a list of dicts of which some have tasks, or a table of the library datasets
    with a column of them, under any attribute of the dataset, or of the datasets that it joins or selects from.
    """
    if _is_table(dataset) or _is_records(dataset, by_id) or isinstance(dataset, TaskDataset):
        return dataset  # its rows are what the collator gets
    attributes = getattr(dataset, "__dict__", {})
    if any(_has_tasks(value, by_id) for value in attributes.values()):
        return TaskDataset(dataset, tpo, by_id)
    for name, value in attributes.items():
        if isinstance(value, Dataset):
            setattr(dataset, name, with_tasks(value, tpo, by_id))
        elif isinstance(value, list) and value and all(isinstance(item, Dataset) for item in value):
            setattr(dataset, name, [with_tasks(item, tpo, by_id) for item in value])
    return dataset


def num_with_tasks(dataset: Any, by_id: Mapping[str, Any]) -> int | None:
    """Number of records with tasks in a dataset; None where that cannot be known without reading its samples."""
    if isinstance(dataset, TaskDataset):
        return dataset.num_with_tasks
    if _is_table(dataset):
        return count_tasks(dataset, by_id)
    if isinstance(dataset, list) and all(isinstance(item, Mapping) for item in dataset):
        return sum(bool(_tasks_of(item, by_id)) for item in dataset)
    parts = getattr(dataset, "datasets", None)
    numbers = [num_with_tasks(part, by_id) for part in parts] if isinstance(parts, (list, tuple)) else [None]
    return None if None in numbers else sum(filter(None, numbers))


class TaskDataset(Dataset[Any]):
    """A dataset that holds its records; serves its samples with their tasks.

    Everything else is the dataset's own. A record whose tasks are wrong raises `RecordError`, also where the dataset
    itself would catch the error and take another record. That it took another one is said.
    """

    def __init__(self, dataset: Any, tpo: Any, by_id: Mapping[str, Any] | None = None) -> None:
        self.dataset, host = dataset, type(tpo.host)
        self._num_frames = host.num_frames
        known, by_id = RecordFormat.of(tpo), by_id or {}
        found = {name: value for name, value in vars(dataset).items() if _has_tasks(value, by_id)}
        if len(found) != 1:
            raise TPOError(
                f"{type(dataset).__name__} holds records with tasks in {sorted(found) or 'no attribute'}; expected one "
                "attribute with its list of records"
            )
        (name, records), media_root = *found.items(), partial(host.media_root, dataset)
        kind = _TaskTable if _is_table(records) else _TaskRecords
        self._records = kind(records, _Reader(known, by_id, media_root))
        self._reads_media = any(asks_for_samples(codec) for codec in known.codecs.values())
        setattr(dataset, name, self._records)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def num_with_tasks(self) -> int:
        """Number of its records that have tasks."""
        return self._records.num_with_tasks

    def __getitem__(self, index: int) -> Any:
        reader = self._records.reader
        reader.start()
        try:
            sample = self.dataset[index]
        except Exception:
            reader.read()
            raise
        record = reader.read()
        if isinstance(sample, list) and record.turns:
            raise TPOError(
                f"{type(self.dataset).__name__} made a list of {record.place}, which has tasks; expected one sample "
                "for each record (packing joins records: switch it off)"
            )
        if not isinstance(sample, Mapping):
            return WithTasks(sample, Sample(record))
        if not self._reads_media or not any(turn.tasks for turn in record.turns):
            return {**sample, SAMPLE: Sample(record)}
        # As many frames as the dataset took, so that a head can match them with what the vision tower saw.
        frames = self._num_frames(sample)
        options = VideoOptions(num_frames=max(frames)) if frames else None
        return {**sample, SAMPLE: read_sample(record, options)}


class _Reader:
    """Reads records for a dataset, and remembers which."""

    def __init__(
        self, format: RecordFormat, by_id: Mapping[str, Any], media_root: Callable[[dict[str, Any]], str | Path]
    ) -> None:
        self.format, self.by_id, self.media_root = format, by_id, media_root
        self.start()

    def start(self) -> None:
        """A sample is about to be made."""
        self.first: str | None = None
        self.last: Record | None = None
        """The one that was read last: the one that a sample is made of, also where a dataset skips unreadable media."""
        self.error: RecordError | None = None

    def read(self) -> Record:
        """The record that the sample was made of. Raises `RecordError` where a record was wrong on the way."""
        if self.error is not None:
            raise self.error
        if self.last is None:
            raise TPOError(
                "the dataset made a sample without reading a record by its index, so its tasks are not known"
            )
        if self.first != self.last.place:
            logger.warning(
                "tpo run: the dataset could not use %s, and took %s in its place", self.first, self.last.place
            )
        return self.last

    def take(self, data: Mapping[str, Any], place: str) -> dict[str, Any]:
        """The record with tokens in its texts, as the dataset gets it."""
        self.first = self.first or place
        try:
            row, self.last = self._take(data, place)
        except RecordError as error:
            self.error = error
            raise
        return row

    def _take(self, data: Mapping[str, Any], place: str) -> tuple[dict[str, Any], Record]:
        name = str(data.get("id", place))
        tasks = _tasks_of(data, self.by_id)
        if not tasks or COLUMN in data or "conversations" not in data:
            row, turns = take_tasks(data, self.format, self.by_id, place)
            return row, Record(name, place, tuple(turns))
        data = {**data, "tasks": tasks}
        record = parse_record(data, self.format, media_root=self.media_root(data), file=place)
        said = [
            {**turn, "value": text if "<video>" in turn["value"] else text.replace("<video>", "<image>")}
            for turn, text in zip(data["conversations"], (t.text for t in record.turns), strict=True)
        ]
        return {**data, "conversations": said}, record


class _TaskRecords(list[Any]):
    """Records as they were, except that one read by its index has tokens in the place of placeholders."""

    def __init__(self, records: Sequence[Any], reader: _Reader) -> None:
        super().__init__(records)
        self.reader, self.num_with_tasks = reader, 0
        for index, data in enumerate(self):
            if _tasks_of(data, reader.by_id):
                self[index]
                self.num_with_tasks += 1

    def __getitem__(self, index: Any) -> Any:
        data = super().__getitem__(index)
        if isinstance(index, slice):
            return data
        return self.reader.take(data, f"record {index}" + (f" (id {data['id']})" if "id" in data else ""))


class _TaskTable:
    """A table of the library datasets, except that a row read by its index has its tasks taken out."""

    def __init__(self, table: Any, reader: _Reader) -> None:
        self.table, self.reader = table, reader
        self.num_with_tasks = count_tasks(table, reader.by_id)

    def __getattr__(self, name: str) -> Any:
        if name == "table":
            raise AttributeError(name)
        return getattr(self.table, name)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        row = self.table[index]
        return self.reader.take(row, f"row {index}") if isinstance(index, int) else row


def _is_table(value: Any) -> bool:
    return hasattr(value, "column_names") and hasattr(value, "num_rows") and hasattr(value, "features")


def _is_records(value: Any, by_id: Mapping[str, Any]) -> bool:
    """Whether it is a list of dicts, some of which have tasks."""
    return isinstance(value, list) and any(isinstance(item, Mapping) and _tasks_of(item, by_id) for item in value)


def _has_tasks(value: Any, by_id: Mapping[str, Any]) -> bool:
    return count_tasks(value, by_id) > 0 if _is_table(value) else _is_records(value, by_id)


def _tasks_of(data: Mapping[str, Any], by_id: Mapping[str, Any]) -> Any:
    return next((data[name] for name in TASKS if data.get(name)), None) or by_id.get(str(data.get("id")))
