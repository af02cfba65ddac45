"""What a run was given at its start, and what is said when it is something else."""

import json
import logging
import os
import shutil

import pytest
import tiny_run
import torch
from PIL import Image

from tpo_plugin import TPOError
from tpo_plugin.data import Records
from tpo_plugin.data.format import RecordFormat
from tpo_plugin.training import inputs as inputs_module
from tpo_plugin.training.config import DataSource, StageConfig, TPOConfig, TrainConfig
from tpo_plugin.training.fingerprint import BLOCK, NUM_BLOCKS, fingerprint
from tpo_plugin.training.inputs import Inputs, of_data, of_host
from tpo_plugin.training.run import read_run, train


def test_a_small_file_is_known_by_all_of_it(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * (BLOCK + 5))
    before = fingerprint(path)
    assert before[:2] == (BLOCK + 5, path.stat().st_mtime_ns)
    assert before.whole
    for at in (0, BLOCK - 1, BLOCK, BLOCK + 4):
        path.write_bytes(b"x" * at + b"y" + b"x" * (BLOCK + 4 - at))
        assert fingerprint(path).sha256 != before.sha256, at


def test_a_file_of_100_gb_is_known_by_its_blocks(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(100_000_000_000)  # takes no room
    before = fingerprint(path)
    assert (before.size, before.whole) == (100_000_000_000, False)
    for block in (0, 1, NUM_BLOCKS // 2, NUM_BLOCKS - 1):
        at = (before.size - BLOCK) * block // (NUM_BLOCKS - 1)
        with path.open("r+b") as file:
            file.seek(at + BLOCK - 1)
            file.write(b"y")
        assert fingerprint(path).sha256 != before.sha256, block
        with path.open("r+b") as file:
            file.seek(at + BLOCK - 1)
            file.write(b"\0")
    assert fingerprint(path).sha256 == before.sha256


@pytest.fixture
def given(tmp_path):
    """A host's folder, records with pictures, and a configuration of two stages; what of them is known."""
    tiny_run.install_head()
    host, data = tmp_path / "host", tmp_path / "data"
    host.mkdir()
    (data / "images").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "README.md", ".hidden"):
        (host / name).write_text(name)
    records = []
    for index in range(4):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(data / "images" / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nis it red"}, {"from": "gpt", "value": "it is"}]
        records.append({"image": f"images/{index}.png", "conversations": turns})
    (data / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "sam.pt").write_text("weights")
    heads = {"point": {"checkpoint": str(tmp_path / "sam.pt"), "size": "large"}}
    source = DataSource(file=str(data / "a.jsonl"))
    config = TrainConfig(
        model=str(host), output_dir=str(tmp_path / "run"), tpo=TPOConfig(heads=heads),
        stages={"one": StageConfig(data=[source], eval_data=[source]), "two": StageConfig(data=[source])},
    )  # fmt: skip
    (tmp_path / "run").mkdir()

    def found(stages=("one", "two"), known=()):
        key = (config.stages["one"].data[0].file, None)
        records = Records(key[0], RecordFormat.of_heads(["point"]))
        return of_host(config, known) | of_data(config, stages, {key: records})

    return config, found


def recorded(tmp_path, found):
    inputs = Inputs(tmp_path / "run")
    inputs.compare(found(), begun=False, accept=False)
    inputs.save()
    return Inputs(tmp_path / "run")


def test_what_is_recorded(tmp_path, given):
    _, found = given
    inputs = recorded(tmp_path, found)
    assert list(inputs.marks) == [
        "model", "tpo.heads.point.checkpoint", "stages.one.data[0]", "stages.one.eval_data[0]", "stages.two.data[0]"
    ]  # fmt: skip
    assert list(inputs.marks["model"]) == ["config.json", "model.safetensors"]
    assert list(inputs.marks["stages.two.data[0]"]) == ["file", *(f"images/{i}.png" for i in range(4))]
    inputs.compare(found(), begun=True, accept=False)


def test_a_touched_file_is_the_same(tmp_path, given):
    _, found = given
    inputs = recorded(tmp_path, found)
    for path in tmp_path.rglob("*.*"):
        os.utime(path, (1, 1))
    inputs.compare(found(), begun=True, accept=False)
    assert inputs.marks["model"]["config.json"][1] == 1_000_000_000


CHANGES = {
    "host/model.safetensors": ("MODEL.safetensors", "model: model.safetensors: other content of the same 17 bytes"),
    "host/config.json": ("longer than before", "model: config.json: was of 11 bytes, is of 18"),
    "host/new.json": ("{}", "model: new.json: was missing, is a file of 2 bytes"),
    "data/images/2.png": ("no picture", r"stages\.one\.data\[0\]: images/2\.png: was of \d+ bytes, is of 10"),
    "sam.pt": ("WEIGHTS", r"tpo\.heads\.point\.checkpoint: .*sam\.pt: other content of the same 7 bytes"),
    "host/model.safetensors gone": (None, "model: model.safetensors: was a file of 17 bytes, is missing"),
    "data/images/1.png gone": (None, r"images/1\.png: was a file of \d+ bytes, is missing"),
    "sam.pt gone": (None, r"tpo\.heads\.point\.checkpoint: file: was a file of 7 bytes, is missing"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_is_named(tmp_path, given, change, caplog):
    _, found = given
    inputs = recorded(tmp_path, found)
    path, (text, message) = tmp_path / change.removesuffix(" gone"), CHANGES[change]
    path.unlink() if text is None else path.write_text(text)
    marks = dict(inputs.marks)
    with pytest.raises(TPOError, match=f"^{tmp_path / 'run'}: the run cannot go on(?s:.*)\n  .*{message}"):
        inputs.compare(found(known=inputs.marks), begun=True, accept=False)
    assert inputs.marks == marks
    with caplog.at_level(logging.WARNING):
        inputs.compare(found(known=inputs.marks), begun=True, accept=True)
    assert "goes on with other inputs than it began with, as accepted" in caplog.text
    inputs.compare(found(known=inputs.marks), begun=True, accept=False)


def test_a_line_of_the_records(tmp_path, given):
    _, found = given
    inputs = recorded(tmp_path, found)
    path = tmp_path / "data" / "a.jsonl"
    path.write_text(path.read_text().replace("is it red", "is it RED", 1))
    size = path.stat().st_size
    with pytest.raises(TPOError, match=rf"stages\.one\.data\[0\]: {path}: other content of the same {size} bytes"):
        inputs.compare(found(), begun=True, accept=False)
    inputs.compare(found([]), begun=True, accept=False)  # of stages that are finished nothing is looked at


def test_before_something_has_trained(tmp_path, given, caplog):
    _, found = given
    inputs = recorded(tmp_path, found)
    (tmp_path / "host" / "config.json").write_text("other")
    with caplog.at_level(logging.WARNING):
        inputs.compare(found(), begun=False, accept=False)
    assert "and nothing has trained yet\n  model: config.json: was of 11 bytes, is of 5" in caplog.text


def test_many_differences(tmp_path, given):
    _, found = given
    inputs = recorded(tmp_path, found)
    for index in range(14):
        (tmp_path / "host" / f"{index}.json").touch()
    with pytest.raises(TPOError, match=r"\n  and 4 more$") as error:
        inputs.compare(found(), begun=True, accept=False)
    assert len(str(error.value).splitlines()) == 12


def test_versions_of_libraries(tmp_path, monkeypatch, caplog):
    (tmp_path / "run").mkdir()
    inputs = Inputs(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            inputs.compare_versions([])
            inputs.save()
            inputs = Inputs(tmp_path / "run")
    assert caplog.messages == []
    (start,) = inputs.versions
    assert start["torch"] == torch.__version__.partition("+")[0]
    own = inputs_module.importlib.metadata.version
    monkeypatch.setattr(
        inputs_module.importlib.metadata, "version", lambda name: "9.9" if name == "transformers" else own(name)
    )
    with caplog.at_level(logging.WARNING):
        inputs.compare_versions([])
    assert caplog.messages == [f"{tmp_path / 'run'} goes on with transformers 9.9 (was {start['transformers']})"]
    assert [found["transformers"] for found in inputs.versions] == [start["transformers"], "9.9"]


@pytest.mark.parametrize("text", ["", "[]", '{"versions": 1, "inputs": {}}', '{"versions": [], "inputs": {"a": 1}}'])
def test_a_record_that_cannot_be_read(tmp_path, text):
    (tmp_path / "inputs.json").write_text(text)
    with pytest.raises(TPOError, match=r"inputs.json: cannot be read .*Without the file the run goes on"):
        Inputs(tmp_path)


# -- a whole run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """A run of two stages that was stopped behind the first."""
    torch.set_num_threads(1)
    tiny_run.install_head()
    folder = tmp_path_factory.mktemp("halfway")
    path = tiny_run.write_world(folder, stages=["stage1", "stage3"])
    config = TrainConfig.from_yaml(path)
    last = config.stages.pop("stage3")
    train(config)
    (folder / "run" / "run.json").unlink()
    return folder, last


@pytest.fixture
def world(halfway, tmp_path):
    """All of it in another place, where the run's own configuration names the old one."""
    folder, last = halfway
    shutil.copytree(folder, tmp_path / "world")
    config = TrainConfig.from_yaml(tmp_path / "world" / "run" / "config.yaml")
    config.stages["stage3"] = last
    return tmp_path / "world", config


def moved(world, config):
    """The configuration with the files of the new place."""
    config.model = f"{world / 'host'}/"
    for stage in config.stages.values():
        stage.data = [DataSource(file=str(world / source.file.rpartition("/")[2])) for source in stage.data]
    config.stages["stage1"].data[1].weight = config.stages["stage3"].data[1].weight = 0.5
    return config


def test_host_data_and_run_may_move(world):
    folder, config = world
    assert config.output_dir == str(folder / "run"), "the config.yaml of a folder is of that folder"
    run = train(moved(folder, config))
    assert run == folder / "run"
    saved = read_run(run)
    assert [stage["steps"] for stage in saved["stages"].values()] == [6, 6]
    assert saved["versions"][0]["torch"] == torch.__version__.partition("+")[0]
    assert saved["host"] == str(folder / "host")


def test_other_data_and_another_host_are_refused(world, caplog):
    folder, config = world
    config = moved(folder, config)
    config.stages["stage3"].data = config.stages["stage1"].data
    path = folder / "chats.jsonl"
    path.write_text(path.read_text().replace("circle", "square"))
    with (folder / "host" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    before = (folder / "run" / "config.yaml").read_text()
    with pytest.raises(TPOError, match="\n  model: model.safetensors: other content of the same"):
        train(config)
    assert (folder / "run" / "config.yaml").read_text() == before
    with caplog.at_level(logging.WARNING):
        train(config, accept_changes=True)
    assert "model: model.safetensors: other content" in caplog.text
    assert read_run(folder / "run")["stages"]["stage3"]["steps"] == 6


def test_data_of_a_stage_that_has_not_begun_is_chosen_anew(world):
    """In the configuration, and so on purpose; under the same name it would not be."""
    folder, config = world
    config.stages["stage3"].data = [DataSource(file=str(folder / "chats.jsonl"))]
    config.stages["stage3"].steps = 1
    assert read_run(train(config))["stages"]["stage3"]["steps"] == 1
