"""The splits of the ablation are the same bytes everywhere, and trainings take them as they should."""

import json

import pytest
from tpo_shapes.baselines import HEAD_OF
from tpo_shapes.cells import FULL_CELL
from tpo_shapes.recipe import SHARDS, Size
from tpo_shapes.splits import CHECKSUMS, FIRST_HALF, FIRST_SEEDS, KINDS, TEST, VALIDATION, VIEWS, checksum, make_splits

SMALL = Size(num_scenes=8, num_clips=4, heldout_scenes=3, heldout_clips=2, steps=(1, 1, 1, 1), batch_size=1)
SMALL_CHECKSUMS = {
    "train-0": "95f4d99e9b99b6d9371344fb2fce77f5679ecf4cede4f13542f340a8a2d85d6b",
    "train-1": "30b5ee9018b4477f2fc7d098f14bc636f2c40ba634ff4125c48e7a951b411776",
    "validation": "276885dc25c2872ac04399a0a63ac3e8c7a4884a846763a5a679c88c38cf9242",
    "test": "4f727788443051f3a5a652966b57906a428ef244193207349105e867d2c99c55",
}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    directory = tmp_path_factory.mktemp("splits")
    make_splits(directory, SMALL, 0)
    return directory


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_small_splits_have_the_bytes_they_always_had(splits):
    assert {name: checksum(splits / name) for name in FIRST_SEEDS} == SMALL_CHECKSUMS


@pytest.mark.slow
def test_the_splits_have_the_bytes_they_always_had(tmp_path):
    make_splits(tmp_path, FULL_CELL, 0)
    assert {name: checksum(tmp_path / name) for name in FIRST_SEEDS} == CHECKSUMS


def test_another_seed_and_another_word_are_other_bytes(splits, tmp_path):
    make_splits(tmp_path, SMALL, 1)
    before = {name: checksum(tmp_path / name) for name in FIRST_SEEDS}
    assert len({*before.values(), *SMALL_CHECKSUMS.values()}) == 8
    file = tmp_path / TEST / "clip_tasks.jsonl"
    file.write_text(file.read_text().replace("the", "a", 1))
    assert checksum(tmp_path / TEST) != before[TEST]


def test_what_is_there_is_not_made_again(splits):
    file = splits / TEST / "chat.jsonl"
    before = file.stat().st_mtime_ns
    make_splits(splits, SMALL, 0)
    assert file.stat().st_mtime_ns == before


def test_splits_share_no_scene(splits):
    told = [
        json.dumps(record["conversations"])
        for name in FIRST_SEEDS
        for kind in ("tasks", "clip_tasks")
        for record in lines_of(splits / name / f"{kind}.jsonl")
    ]
    assert len(set(told)) == len(told) == SMALL.num_scenes + SMALL.num_clips + 2 * (3 + 2)


def test_views_ask_for_what_they_are_named_for(splits):
    root = splits / SHARDS[0]
    whole = lines_of(root / "clip_tasks.jsonl")
    for view in VIEWS:
        records = lines_of(root / f"clip_tasks_{view}.jsonl")
        assert {record["id"] for record in records} <= {record["id"] for record in whole}
        heads = {task["head"] for record in records for task in record.get("tasks", [])}
        kinds = {HEAD_OF[kind] for record in records for kind in record["kinds"]}
        if view == "text":
            assert heads == set()
        elif view == "moment":
            assert heads == {"region", "moment", "mask"}
        elif view == "bare":
            assert heads == {"region", "temporal", "mask"}
        else:
            assert heads == kinds == set(view.split("-"))
    assert not lines_of(root / "tasks_temporal.jsonl"), "pictures have no moments"


def test_the_first_half_is_the_first_half(splits):
    for kind in KINDS:
        whole, half = (lines_of(splits / SHARDS[0] / f"{kind}{end}.jsonl") for end in ("", f"_{FIRST_HALF}"))
        assert half == whole[: len(whole) // 2] != []
    assert not (splits / VALIDATION / f"chat_{FIRST_HALF}.jsonl").exists()
