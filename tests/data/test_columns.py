"""Tables of Hugging Face datasets: saved, in Parquet and Arrow files, in memory."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from shards import as_dataset, chat, picture
from torch.utils.data import DataLoader

from tpo_plugin.data import RecordDataset, Records, read_sample
from tpo_plugin.data.opening import open_source
from tpo_plugin.data.packed import Packed
from tpo_plugin.errors import MediaError, RecordError
from tpo_plugin.extras import MissingPackage

datasets = pytest.importorskip("datasets")

NUM = 9
RECORDS, PICTURES = [chat(f"r{i}") for i in range(NUM)], [picture(i) for i in range(NUM)]
PIXELS = [(f"r{i}", (i, 3 * i, 7)) for i in range(NUM)]


def first_pixels(samples: Any) -> list[Any]:
    return [(sample.record.id, sample.images[0].getpixel((0, 0))) for sample in samples]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder: Path, form: str) -> str:
    """The same rows in one of the forms that they have on a disk."""
    table = as_dataset(RECORDS, PICTURES)
    if form == "saved":
        table.save_to_disk(folder / "saved")
        return str(folder / "saved")
    if form == "split":
        datasets.DatasetDict(train=table, test=table.select([0])).save_to_disk(folder / "splits")
        return str(folder / "splits" / "train")
    if form == "arrow":
        table.save_to_disk(folder / "saved", num_shards=2)
        return f"{folder}/saved/*.arrow"
    for number, (start, stop) in enumerate(((0, 4), (4, NUM))):
        table.select(range(start, stop)).to_parquet(folder / f"{number}.parquet")
    return f"{folder}/{{0..1}}.parquet"


@pytest.mark.parametrize("form", ["saved", "split", "arrow", "parquet"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_row_is_read_once_with_its_own_picture(tmp_path: Path, tpo: Any, form: str, num_workers: int) -> None:
    records = Records(write(tmp_path, form), tpo)
    assert len(records) == NUM
    assert records.files
    assert all(file.is_file() for file in records.files)
    assert all(isinstance(record.images[0], Packed) for record in records)
    loader = DataLoader(RecordDataset([records]), 2, num_workers=num_workers, collate_fn=first_pixels)
    assert [pixel for batch in loader for pixel in batch] == PIXELS


def test_a_row_is_named_by_its_file_and_its_place_there(tmp_path: Path, tpo: Any) -> None:
    records = Records(write(tmp_path, "parquet"), tpo)
    assert [records.place(i) for i in (3, 4, 8)] == [
        f"{tmp_path}/{place}" for place in ("0.parquet[3]", "1.parquet[0]", "1.parquet[4]")
    ]
    assert str(records[5].images[0]) == f"{tmp_path}/1.parquet[1]/image0"


def test_a_dataset_in_memory_is_not_decoded_and_goes_to_workers(tpo: Any) -> None:
    table = as_dataset(RECORDS, PICTURES).shuffle(seed=1)
    records = pickle.loads(pickle.dumps(Records(table, tpo)))
    order = [int(name[1:]) for name in table["id"]]
    assert first_pixels(map(read_sample, records)) == [PIXELS[i] for i in order]


@pytest.mark.parametrize("feature", ["bytes", "list", "path", "image with a path"])
def test_what_a_column_may_hold(tmp_path: Path, tpo: Any, feature: str) -> None:
    (tmp_path / "a.png").write_bytes(PICTURES[0])
    image: Any = {
        "bytes": PICTURES[0],
        "list": [{"bytes": PICTURES[0], "path": "x/a.png"}],
        "path": "a.png",
        "image with a path": {"bytes": None, "path": str(tmp_path / "a.png")},
    }[feature]
    table = datasets.Dataset.from_list([RECORDS[0] | {"image": image}, {**RECORDS[0], "image": None}])
    records = Records(table.select([0]), tpo, media_root=tmp_path)
    assert first_pixels([read_sample(records[0])]) == PIXELS[:1]
    with pytest.raises(RecordError, match=r"records: \[1\].image: has 0 file\(s\), the conversation 1 tag"):
        Records(table, tpo, media_root=tmp_path)


def test_what_is_wrong_is_named(tmp_path: Path, tpo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write(tmp_path, "parquet")
    records = RecordDataset([Records(datasets.Dataset.from_list([RECORDS[0] | {"image": b"none"}]), tpo)])
    with pytest.raises(
        MediaError, match=r"records\[0\]/image0: cannot be read as an image: cannot identify image file$"
    ):
        records[0]
    (tmp_path / "1.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:900])
    with pytest.raises(RecordError, match=r"1.parquet: cannot be read: "):
        open_source(name)
    (tmp_path / "1.parquet").unlink()
    with pytest.raises(RecordError, match=r"1.parquet: cannot be read: no such file"):
        open_source(name)
    datasets.Dataset.from_list([{"id": 3.5}]).to_parquet(tmp_path / "1.parquet")
    with pytest.raises(RecordError, match=r"0.parquet: and the 1 files behind it have not the same columns"):
        open_source(name)
    with pytest.raises(RecordError, match=r"records: IterableDataset is a stream, in which no run could go on"):
        Records(as_dataset(RECORDS, PICTURES).to_iterable_dataset(), tpo)
    write(tmp_path, "split")
    with pytest.raises(
        RecordError, match=r"splits: holds several datasets \(test, train\); name one, as .*splits/test"
    ):
        open_source(tmp_path / "splits")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackage, match=r"datasets is not installed; pip install 'tpo-plugin\[datasets\]'"):
        open_source(name)
