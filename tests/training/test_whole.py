"""Folders that are whole or not there, and which checkpoint a run goes on from."""

import logging
import os
import shutil
from pathlib import Path

import pytest
from harm import HARMS, deleted, halved

from tpo_plugin import TPOError
from tpo_plugin.training.checkpoints import last_checkpoint, rotate
from tpo_plugin.training.whole import MANIFEST, UNFINISHED, damage, written_whole


def write(place, **files):
    with written_whole(place, writer=True) as folder:
        for name, text in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


@pytest.fixture
def stage(tmp_path):
    """Two checkpoints."""
    for step in (2, 10):
        write(tmp_path / f"checkpoint-{step}", weights=f"weights of {step}", optimizer__part="values", state="{}\n")
    return tmp_path


def test_a_folder_is_there_when_it_is_whole(tmp_path):
    place = tmp_path / "checkpoint-1"
    with written_whole(place, writer=True) as folder:
        (folder / "weights").write_text("1")
        assert not place.exists()
    assert {path.name for path in place.iterdir()} == {"weights", MANIFEST}
    assert damage(place) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_an_empty_folder_replaces_nothing(tmp_path):
    place = tmp_path / "checkpoint-1"
    with written_whole(place, writer=True):
        place.mkdir()
        (place / "weights").write_text("by another way")
    assert (place / "weights").read_text() == "by another way"
    assert not (tmp_path / UNFINISHED).exists()


def test_what_fails_half_way_leaves_what_was_there(tmp_path):
    place = tmp_path / "checkpoint-1"
    write(place, weights="old")

    def fill_the_disk(folder):
        (folder / "weights").write_text("ne")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"), written_whole(place, writer=True) as folder:
        fill_the_disk(folder)
    assert (place / "weights").read_text() == "old"
    assert damage(place) is None
    write(place, weights="new")
    assert (place / "weights").read_text() == "new"
    assert not (tmp_path / UNFINISHED).exists(), "what was left behind is gone"


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["weights", "optimizer/part", "state", MANIFEST])
def test_every_damage_is_found_and_the_one_before_is_taken(stage, name, harm, caplog):
    harm(stage / "checkpoint-10" / name)
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(stage) == str(stage / "checkpoint-2")
    (line,) = caplog.messages
    assert line.startswith(f"{stage / 'checkpoint-10'} is passed over: ")
    assert line.endswith("; the one before it is taken")
    if name != MANIFEST:
        assert name in line


def test_the_newest_is_the_one_of_the_highest_step(stage):
    os.utime(stage / "checkpoint-2")
    (stage / "checkpoint-99.bak").mkdir()
    (stage / "checkpoint-98").touch()
    assert last_checkpoint(stage) == str(stage / "checkpoint-10")
    assert last_checkpoint(stage / "nothing") is None


def test_a_file_that_was_added_does_no_harm(stage):
    (stage / "checkpoint-10" / "notes.txt").write_text("the good one")
    assert last_checkpoint(stage) == str(stage / "checkpoint-10")


def test_where_none_is_whole_each_is_named(stage):
    halved(stage / "checkpoint-10" / "weights")
    deleted(stage / "checkpoint-2" / MANIFEST)
    with pytest.raises(TPOError, match=r"no checkpoint is as it was written; put one back, or remove them") as error:
        last_checkpoint(stage)
    assert "checkpoint-10 is passed over: weights has 6 bytes, and was written with 13" in str(error.value)
    assert "checkpoint-2 is passed over: it has no manifest.json, which is written last" in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"files": []}', '{"files": {"weights": 3}}', '{"files": {"a\\u0000": {}}}', "[" * 9999]
)
def test_a_manifest_of_another_form(stage, text):
    (stage / "checkpoint-10" / MANIFEST).write_text(text)
    assert "manifest.json cannot be read" in damage(stage / "checkpoint-10")


def test_deleting_goes_by_step_and_not_by_time(tmp_path):
    for step in (12, 2, 10, 4):
        write(tmp_path / f"checkpoint-{step}", weights=str(step))
    rotate(tmp_path, 12, 2, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-12"]


def test_deleting_never_takes_the_last_whole_one(tmp_path):
    """After a checkpoint that was damaged the run went on from one before it, and stopped at a step between the two."""
    for step in (8, 9, 10):
        write(tmp_path / f"checkpoint-{step}", weights=str(step))
    deleted(tmp_path / "checkpoint-10" / "weights")
    rotate(tmp_path, 9, 1, None)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    write(tmp_path / "checkpoint-12", weights="12")
    rotate(tmp_path, 12, 2, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-12", "checkpoint-9"]


def test_deleting_keeps_the_best(tmp_path):
    for step in (2, 4, 6):
        write(tmp_path / f"checkpoint-{step}", weights=str(step))
    rotate(tmp_path, 6, 1, "moved/since/checkpoint-2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-6"]


def test_no_limit_deletes_nothing(stage):
    rotate(stage, 10, None, None)
    assert len(list(stage.iterdir())) == 2


def test_a_folder_that_is_being_deleted_is_never_taken(stage, monkeypatch):
    """Killed in the middle of it, as it were."""

    def killed(path, *args, **kwargs):
        deleted(Path(path) / "checkpoint-2" / "weights")
        raise SystemExit

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(SystemExit):
        rotate(stage, 10, 1, None)
    assert [path.name for path in stage.glob("checkpoint-*")] == ["checkpoint-10"]
