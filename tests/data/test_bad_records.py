"""Records that break the format in a source too large to be checked when it is opened; and batches of nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from tpo_plugin.data import RecordDataset, RecordFormat, Records, TPOCollator
from tpo_plugin.data import records as records_module
from tpo_plugin.data.check import check_files
from tpo_plugin.errors import MediaError, TPOError

NUM = 400


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source that is opened as a large one; every hundredth record is wrong: no JSON, a role, a box, a picture."""
    monkeypatch.setattr(records_module, "CHECK_LIMIT", 100)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nwhere"}, {"from": "gpt", "value": "here <region>"}]
    good = {"image": "a.png", "conversations": turns, "tasks": [{"head": "region", "boxes": [[0.1, 0.2, 0.5, 0.6]]}]}
    lines = [json.dumps(good | {"id": str(i)}) for i in range(NUM)]
    lines[7] = "{broken"
    lines[107] = json.dumps(good | {"conversations": [turns[0], {"from": "bot", "value": "here <region>"}]})
    lines[207] = json.dumps(good | {"tasks": [{"head": "region", "boxes": [[0.5, 0.2, 0.1, 0.6]]}]})
    lines[307] = json.dumps(good | {"id": "307", "image": "gone.png"})
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    return path


def _dataset(path: Path, max_bad_share: float) -> RecordDataset:
    return RecordDataset([Records(path, RecordFormat.of_heads(["region"]))], max_bad_share=max_bad_share)


def _ids(samples: list[Any]) -> list[str]:
    return [sample.record.id for sample in samples]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_goes_on_past_bad_records_and_reports_them(large: Path, num_workers: int) -> None:
    dataset = _dataset(large, 0.02)
    batches = list(DataLoader(dataset, batch_size=50, num_workers=num_workers, collate_fn=_ids))
    assert sum(map(len, batches)) == NUM
    lines = dataset.report().splitlines()
    assert lines[0] == f"media: {NUM} records read, 4 skipped because they cannot be read"
    for line, place, reason in zip(
        lines[1:],
        (8, 108, 208, 308),
        (
            "is not valid JSON",
            "conversations[1].from: is 'bot'",
            "tasks[0].boxes[0]: x1 is 0.5",
            "gone.png: no such file",
        ),
        strict=True,
    ):
        assert line.startswith(f"  {large}:{place} (id {'307' if place == 308 else '?'}): ")
        assert reason in line
    assert dataset.num_media_kinds == 2  # a record that cannot be read counts as one without media


def test_too_many_of_them_stop_the_run(large: Path) -> None:
    dataset = _dataset(large, 0.005)  # of at least 200 records, so that the second is one too many
    with pytest.raises(MediaError, match=r"2 of \d+ records .* last: .*a\.jsonl:108 \(id \?\): conversations\[1\]"):
        list(map(dataset.__getitem__, range(NUM)))


def test_all_of_them_are_listed(large: Path) -> None:
    report = check_files([(large, None)], RecordFormat.of_heads(["region"]))
    assert report.records == NUM
    places = sorted(message.split(": ")[0] for kind in report.errors.values() for message in kind.first)
    assert places == sorted(f"{large}:{line}" for line in (8, 108, 208))


def test_a_batch_of_nothing(tpo: Any, small_tokenizer: Callable[..., Any]) -> None:
    for for_generation in (False, True):
        with pytest.raises(TPOError, match="the batch is empty: no sample was given; expected at least one"):
            TPOCollator(tpo, for_generation=for_generation)([])
