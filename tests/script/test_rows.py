"""Tasks behind datasets and collators that know nothing of them."""

from __future__ import annotations

import copy
import pickle
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tpo_plugin as tpo
from tpo_plugin.script.rows import TaskCollator
from tpo_plugin.script.samples import TaskDataset
from tpo_plugin.testing import tiny_host

BOX, OTHER = [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.9, 1.0]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return tpo.apply_tpo(*tiny_host(), heads=["region"])


def region(*boxes: list[float]) -> dict[str, Any]:
    return {"head": "region", "boxes": list(boxes)}


class Plain:
    """A codebase's collator over texts; keeps what it was given."""

    def __init__(self, tokenizer: Any, text: Any) -> None:
        self.tokenizer, self.text, self.rows = tokenizer, text, []

    def __call__(self, rows: list[Any]) -> Any:
        self.rows = copy.deepcopy(rows)
        batch = self.tokenizer([self.text(row) for row in rows], return_tensors="pt", padding=True)
        batch["labels"] = batch["input_ids"].clone()
        return batch


def collator(model: Any, text: Any) -> Any:
    return TaskCollator(model.tpo, Plain(model.tpo.tokenizer, text))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": " it stands <region> here\n"}, lambda row: row["text"]),
        ({"prompt": "where is it", "completion": "<region> here"}, lambda row: row["prompt"] + " " + row["completion"]),
        (
            {"messages": [{"role": "user", "content": "where"}, {"role": "assistant", "content": "it <region>"}]},
            lambda row: " ".join(turn["content"] for turn in row["messages"]),
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "text", "text": "it <region>"}]}]},
            lambda row: row["messages"][0]["content"][0]["text"],
        ),
        (
            {"conversations": [{"from": "human", "value": "where"}, {"from": "gpt", "value": "<region>"}]},
            lambda row: " ".join(turn["value"] for turn in row["conversations"]),
        ),
    ],
)
def test_placeholders_of_a_row_become_tokens(model, row, text):
    collate = collator(model, text)
    batch = collate([{**row, "tasks": [region(BOX, OTHER)]}, {**row, "tasks": [region(OTHER)]}])
    assert type(batch) is dict  # transformers 4.45 cannot move a BatchEncoding with dicts in it
    assert not any("tasks" in given for given in collate.rows)
    trigger, task = model.tpo.token_ids["region"]
    assert (batch["input_ids"] == task).sum(-1).tolist() == [2, 1]
    assert (batch["labels"] == trigger).sum(-1).tolist() == [2, 1]
    assert not (batch["labels"] == task).any()
    torch.testing.assert_close(batch["task_targets"]["region"]["boxes_xyxy"], torch.tensor([BOX, OTHER, OTHER]))
    assert [row for row, _ in batch["task_positions"].task["region"]] == [0, 0, 1]
    out = model(**{k: v for k, v in batch.items() if k != "token_type_ids"})
    assert out.tpo.losses["region"] > 0


def test_outer_blanks_of_a_text_stay(model):
    collate = collator(model, lambda row: row["text"])
    collate([{"text": " it stands <region> here\n", "tasks": [region(BOX)]}])
    assert collate.rows == [{"text": " it stands <box_begin><boxes> here\n"}]


def test_a_box_that_the_user_gives_is_an_input(model):
    collate = collator(model, lambda row: " ".join(turn["content"] for turn in row["messages"]))
    turns = [{"role": "user", "content": "the <region> is"}, {"role": "assistant", "content": "it <region>"}]
    batch = collate([{"messages": turns, "tasks": [region(BOX), region(OTHER)]}])
    torch.testing.assert_close(batch["task_inputs"]["region"]["boxes_xyxy"], torch.tensor([BOX]))
    torch.testing.assert_close(batch["task_targets"]["region"]["boxes_xyxy"], torch.tensor([OTHER]))
    assert not (batch["labels"] == model.tpo.tokens["region"].input_id).any()


def test_rows_without_tasks_go_through(model):
    collate = collator(model, lambda row: row["text"])
    batch = collate([{"text": "it stands here"}])
    assert collate.rows == [{"text": "it stands here"}]
    assert "task_targets" not in batch


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "it <region>"}, r"has 2 task\(s\) of head 'region', the conversation has 1 placeholder"),
        ({"text": "it"}, r"row 0 of the batch: its tasks take 2 task token\(s\) of head 'region', its row .* has 0"),
    ],
)
def test_as_many_placeholders_as_tasks(model, row, message):
    with pytest.raises(tpo.TPOError, match=message):
        collator(model, lambda row: row["text"])([{**row, "tasks": [region(BOX), region(BOX)]}])


def test_tokens_that_the_collator_cut_off_are_missed(model):
    collate = collator(model, lambda row: row["text"].split("<box_begin>")[0])
    with pytest.raises(tpo.TPOError, match=r"row 0 of the batch: its tasks take 1 task token\(s\).* has 0"):
        collate([{"text": "it stands <region>", "tasks": [region(BOX)]}])


class Lazy:
    """A codebase's dataset: takes the next record where one fails."""

    note = "its own"

    def __init__(self, records: list[dict[str, Any]], broken: int | None = None) -> None:
        self.list_data_dict, self.broken = records, broken

    def __len__(self) -> int:
        return len(self.list_data_dict)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self._get_item(index)
        except Exception:
            return self._get_item(index + 1)

    def _get_item(self, index: int) -> dict[str, Any]:
        record = self.list_data_dict[index]
        if index == self.broken:
            raise OSError("unreadable")
        return {"text": " ".join(turn["value"] for turn in record["conversations"])}


def record(answer: str, tasks: list[Any], question: str = "where") -> dict[str, Any]:
    return {
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        "tasks": tasks,
    }


class RecordsHost(tpo.Host):
    records = "list_data_dict"


def tasks_of(dataset: Any, model: Any) -> Any:
    host = RecordsHost(**{field.name: getattr(model.tpo.host, field.name) for field in fields(tpo.Host)})
    return TaskDataset(dataset, SimpleNamespace(codecs=model.tpo.codecs, tokens=model.tpo.tokens, host=host))


def test_a_dataset_of_records(model):
    records = [record("it <region>", [region(BOX)]), record("here", []), record("<region>", [region(OTHER, BOX)])]
    dataset = pickle.loads(pickle.dumps(tasks_of(Lazy(records), model)))
    assert (len(dataset), dataset.note) == (3, "its own")
    batch = collator(model, lambda row: row["text"])([dataset[index] for index in range(3)])
    torch.testing.assert_close(batch["task_targets"]["region"]["boxes_xyxy"], torch.tensor([BOX, OTHER, BOX]))


def test_the_tasks_are_of_the_record_that_was_read(model):
    records = [record("it <region>", [region(BOX)]), record("<region>", [region(OTHER)])]
    dataset = tasks_of(Lazy(records, broken=0), model)
    batch = collator(model, lambda row: row["text"])([dataset[0]])
    torch.testing.assert_close(batch["task_targets"]["region"]["boxes_xyxy"], torch.tensor([OTHER]))


def test_a_wrong_task_is_not_skipped(model):
    records = [record("it <region>", [region(BOX)]), record("here", [])]
    dataset = tasks_of(Lazy(records), model)
    records_in_use = dataset.dataset.list_data_dict
    list.__setitem__(records_in_use, 0, record("it <region>", [region([0.5, 0.5, 0.1, 0.6])]))
    with pytest.raises(tpo.RecordError, match=r"record 0: tasks\[0\]\.boxes\[0\]: x1 is 0\.5 and x2 is 0\.1"):
        dataset[0]


def test_wrong_tasks_are_found_when_the_dataset_is_taken(model):
    with pytest.raises(tpo.RecordError, match=r"record 1: tasks: has 1 task\(s\) of head 'region'"):
        tasks_of(Lazy([record("here", []), record("here", [region(BOX)])]), model)


def test_a_video_keeps_its_tag(model):
    given = {**record("it <region>", [region(BOX)], "<image>\nwhere"), "video": "clip.mp4"}
    assert tasks_of(Lazy([given]), model)[0]["text"] == "<image>\nwhere it <box_begin><boxes>"


class Made(Lazy):
    """Makes what `kind` makes of a text."""

    def __init__(self, records: list[Any], kind: Any) -> None:
        super().__init__(records)
        self.kind = kind

    def __getitem__(self, index: int) -> Any:
        return self.kind(super().__getitem__(index)["text"])


@pytest.mark.parametrize("kind", [str, lambda text: (text, 1)])
def test_samples_that_are_no_dicts(model, kind):
    records = [record("it <region>", [region(BOX)]), record("here", [])]
    dataset = tasks_of(Made(records, kind), model)
    collate = collator(model, lambda row: row if isinstance(row, str) else row[0])
    batch = collate([dataset[0], dataset[1]])
    torch.testing.assert_close(batch["task_targets"]["region"]["boxes_xyxy"], torch.tensor([BOX]))
    assert [type(row) for row in collate.collator.rows] == [type(kind("a"))] * 2


def test_samples_that_are_joined_are_refused(model):
    dataset = tasks_of(Made([record("it <region>", [region(BOX)]), record("here", [])], lambda text: [text]), model)
    with pytest.raises(tpo.TPOError, match="Made made a list of record 0, which has tasks; expected one sample"):
        dataset[0]
    assert dataset[1].made == ["where here"]
