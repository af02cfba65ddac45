"""Rows keep their tasks through the `map` of the library datasets."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tpo_plugin as tpo
from tpo_plugin.script import maps
from tpo_plugin.script.expand import COLUMN, ScriptTasks, check_data, unpack
from tpo_plugin.script.settings import ScriptSettings

datasets = pytest.importorskip("datasets")

BOX, OTHER = [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.9, 1.0]
CHANGED = ("map", "remove_columns", "select_columns", "set_transform")


def region(box: list[float]) -> dict[str, Any]:
    return {"head": "region", "boxes": [box]}


ROWS = [
    {"id": "a", "question": "where", "answer": "it is <region>", "tasks": [region(BOX)]},
    {"id": "b", "question": "what", "answer": "a truck", "tasks": []},
    {"id": "c", "question": "<region>?", "answer": "<region>", "tasks": [region(OTHER), region(BOX)]},
]


def hook(settings: ScriptSettings) -> Iterator[None]:
    found = [importlib.import_module(f"datasets.{name}") for name in ("arrow_dataset", "iterable_dataset")]
    owners = [owner for module in found for owner in vars(module).values() if isinstance(owner, type)]
    owners = [owner for owner in owners if owner.__name__ in ("Dataset", "IterableDataset")]
    before = {(owner, name): vars(owner)[name] for owner in owners for name in CHANGED if name in vars(owner)}
    for module in found:
        maps.hook_datasets(module, settings)
    yield
    for (owner, name), value in before.items():
        setattr(owner, name, value)
    maps.met.clear()


@pytest.fixture
def hooked() -> Iterator[None]:
    yield from hook(ScriptSettings(heads=["region"]))


@pytest.fixture
def rows(hooked: None) -> Any:
    return datasets.Dataset.from_list(ROWS)


def words(row: dict[str, Any]) -> dict[str, Any]:
    return {"words": f"{row['question']} {row['answer']}".split()}


def tasks_of(dataset: Any) -> list[list[tuple[str, Any]]]:
    return [list(zip(*unpack(text), strict=True)) for text in dataset[COLUMN]]


WORDS = [["where", "it", "is", "<box_begin><boxes>"], ["what", "a", "truck"], ["<region_box>?", "<box_begin><boxes>"]]
TASKS = [[("assistant", region(BOX))], [], [("user", region(OTHER)), ("assistant", region(BOX))]]


def test_a_function_gets_tokens_and_the_tasks_stay(rows):
    made = rows.map(words, remove_columns=rows.column_names)
    assert sorted(made.column_names) == [COLUMN, "words"]
    assert (list(made["words"]), tasks_of(made)) == (WORDS, TASKS)
    again = (
        made.map(lambda row: {"number": len(row["words"])})
        .filter(lambda row: row["number"] < 4)
        .select_columns("words")
    )
    assert tasks_of(again) == TASKS[1:]
    assert sorted(again.remove_columns([COLUMN, "words"]).column_names) == [COLUMN]
    assert maps.met == {"words": 2, "test_a_function_gets_tokens_and_the_tasks_stay.<locals>.<lambda>": 2}


def test_two_processes_and_a_cache(rows, tmp_path):
    rows.save_to_disk(str(tmp_path))
    stored = datasets.load_from_disk(str(tmp_path))
    first = stored.map(words, num_proc=2)
    assert tasks_of(first) == TASKS
    second = stored.map(words, num_proc=2)
    assert first._fingerprint == second._fingerprint
    assert first.cache_files == second.cache_files != []


def test_a_batched_function_may_leave_rows_out(rows):
    def some(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        kept = [answer for answer in batch["answer"] if "truck" not in answer]
        return {"text": kept}

    made = rows.map(some, batched=True, remove_columns=rows.column_names)
    assert list(made["text"]) == ["it is <box_begin><boxes>", "<box_begin><boxes>"]
    assert tasks_of(made) == [TASKS[0], TASKS[2]]


def test_columns_as_arguments_and_indices(rows):
    def made_of(answer: str, question: str, index: int) -> dict[str, Any]:
        return {"text": f"{index} {answer} {question}"}

    made = rows.map(made_of, input_columns=["answer", "question"], with_indices=True)
    assert list(made["text"]) == [
        "0 it is <box_begin><boxes> where",
        "1 a truck what",
        "2 <box_begin><boxes> <region_box>?",
    ]
    both = rows.map(lambda batch, indices: {"at": indices}, batched=True, with_indices=True)
    assert list(both["at"]) == [0, 1, 2]
    assert tasks_of(both) == TASKS


def test_features_and_a_stream(rows):
    features = datasets.Features({"words": datasets.Sequence(datasets.Value("string"))})
    made = rows.map(words, remove_columns=rows.column_names, features=features)
    assert tasks_of(made) == TASKS
    stream = rows.to_iterable_dataset().map(words, remove_columns=["question", "answer", "tasks"])
    assert [row["words"] for row in stream] == WORDS
    assert [row.get(COLUMN, "") != "" for row in stream] == [True, False, True]


def test_a_transform(rows):
    rows.set_transform(lambda batch: {"text": batch["answer"]}, columns=["answer", "question"])
    assert [rows[i]["text"] for i in (0, 2)] == ["it is <box_begin><boxes>", "<box_begin><boxes>"]
    assert unpack(rows[2][COLUMN]) == (["user", "assistant"], [region(OTHER), region(BOX)])


def test_a_dataset_without_tasks_is_left_alone(hooked):
    plain = datasets.Dataset.from_list([{"text": "it is <region>"}])
    assert plain.map(lambda row: {"n": len(row["text"])}).column_names == ["text", "n"]
    assert not maps.met


def tokenised(rows: Any) -> Any:
    def ids(row: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": [1, 2, 3, 4, len(row["answer"])]}

    return rows.map(ids, remove_columns=rows.column_names)


def test_tokenised_rows_may_be_cut(rows):
    made = tokenised(rows).map(lambda batch: {"input_ids": [ids[:3] for ids in batch["input_ids"]]}, batched=True)
    assert tasks_of(made) == TASKS
    assert list(made["input_ids"]) == [[1, 2, 3]] * 3


def joined(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"input_ids": [[i for ids in batch["input_ids"] for i in ids]]}


def reversed_rows(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"input_ids": batch["input_ids"][::-1]}


@pytest.mark.parametrize("function", [joined, reversed_rows])
def test_tokenised_rows_may_not_be_joined(rows, function):
    made = tokenised(rows)
    with pytest.raises(tpo.TPOError, match=rf"{function.__name__} joins rows \(packing\), so .* switch packing off"):
        made.map(function, batched=True, remove_columns=made.column_names)


def cut_table(table: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pa.table({"input_ids": pc.list_slice(table["input_ids"], 0, 2)})


def test_tables_may_be_cut_and_not_joined(rows):
    made = tokenised(rows).with_format("arrow")
    cut = made.map(cut_table, batched=True, remove_columns=made.column_names).with_format(None)
    assert tasks_of(cut) == TASKS
    with pytest.raises(tpo.TPOError, match=r"packing"):
        made.map(lambda table: table.slice(0, 1), batched=True)


def test_one_row_may_not_become_two(rows):
    with pytest.raises(tpo.TPOError, match="twice makes 2 rows of one with tasks; expected one"):
        rows.map(twice, batched=True, remove_columns=rows.column_names)


def twice(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"text": batch["answer"] * 2}


def test_a_wrong_task_names_its_row(hooked):
    wrong = datasets.Dataset.from_list([{**ROWS[0], "tasks": [region([0.5, 0.5, 0.1, 0.6])]}])
    with pytest.raises(tpo.RecordError, match=r"a row of the dataset \(id a\): tasks\[0\]\.boxes\[0\]: x1 is 0\.5"):
        wrong.map(words)


def data_file(path: Path, *records: dict[str, Any]) -> ScriptSettings:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return ScriptSettings(heads=["region"], data=str(path))


def test_tasks_of_a_file_by_id(tmp_path):
    settings = data_file(tmp_path / "tasks.jsonl", *({"id": row["id"], "tasks": row["tasks"]} for row in ROWS))
    for _ in hook(settings):
        bare = datasets.Dataset.from_list([{k: v for k, v in row.items() if k != "tasks"} for row in ROWS])
        made = bare.map(words, remove_columns=bare.column_names)
        assert (list(made["words"]), tasks_of(made)) == (WORDS, TASKS)
        assert maps.count_tasks(bare, ScriptTasks.of(settings).by_id) == 2


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"tasks": []}], r"tasks\.jsonl:1: id: is missing"),
        ([{"id": 1}, {"id": "1"}], r"tasks\.jsonl:2: id: '?1'? stands there twice"),
        (
            [{"id": 1, "tasks": [{"head": "regoin"}]}],
            r"\(id 1\): tasks\[0\]\.head: is 'regoin'.* did you mean 'region'",
        ),
    ],
)
def test_a_wrong_file_of_tasks(tmp_path, records, message):
    with pytest.raises(tpo.RecordError, match=message):
        check_data(data_file(tmp_path / "tasks.jsonl", *records))


def test_the_name_of_a_function():
    assert maps._name(maps.CarryingTasks(twice, None, batched=True, inputs=[], always=True)) == "twice"
    assert maps._name(SimpleNamespace()) == "SimpleNamespace"
