"""What speaks against a run is said before it starts."""

import json

import pytest
import tiny_run
import torch
import yaml

from tpo_plugin.data import records
from tpo_plugin.training.config import TrainConfig
from tpo_plugin.training.outlook import outlook
from tpo_plugin.training.run import build_model, train
from tpo_plugin.training.stages import check_stages

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    tiny_run.install_head()
    folder = tmp_path_factory.mktemp("world")
    return folder, yaml.safe_load(tiny_run.write_world(folder, stages=["stage1", "stage2"]).read_text())


@pytest.fixture(scope="module")
def model(world):
    return build_model(TrainConfig.from_dict(world[1], where="config"))


def write(folder, name, questions, num_plain=0):
    """Records that each ask for a point in one of the wordings, and some of plain conversation; the file's source."""
    records = [
        {
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "it stands here <point>"}],
            "tasks": [{"head": "point", "points_xy": [0.1, 0.2]}],
        }
        for question in questions
    ]
    plain = {"conversations": [{"from": "human", "value": "is it red"}, {"from": "gpt", "value": "the red circle"}]}
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records + num_plain * [plain]))
    return {"file": str(path)}


def said(world, model, **changes):
    """Of the run with these changes of both stages."""
    stages = {name: stage | changes for name, stage in world[1]["stages"].items()}
    config = TrainConfig.from_dict({**world[1], "stages": stages}, where="config")
    return outlook(config, list(stages), check_stages(model, config, list(stages)))


WORDINGS = ("where is red", "is the circle red", "the red circle is")


def test_a_run_that_others_like_it_learnt_in_has_nothing_against_it(world, model):
    data = [write(world[0], "good", 20 * WORDINGS, num_plain=60)]
    assert said(world, model, data=data, steps=400, learning_rates={"lora": 1e-3, "heads": 1e-3, "tokens": 1e-3}) == []


@pytest.mark.parametrize(
    ("data", "changes", "sentences"),
    [
        ((20 * WORDINGS, 0), {}, ["stages.stage1.data: each answer calls a head", "stages.stage2.data: each answer"]),
        ((16 * WORDINGS, 48), {}, ["point: the data has 48 answers for it, and fewer than 50"]),
        ((60 * WORDINGS[:1], 60), {}, ["point: all questions for it begin with 'where is red', and one in other"]),
        (
            (20 * WORDINGS, 60),
            {"steps": 9},
            ["triggers train for 18 steps in all", "point: its loss trains for 9 steps"],
        ),
        ((20 * WORDINGS, 60), {"steps": None, "epochs": 2.0, "batch_size": 4}, ["point: its loss trains for 60 steps"]),
        ((20 * WORDINGS, 60), {"losses": ["mllm", "assign"]}, ["point: no stage has both its loss and answers"]),
        (
            (20 * WORDINGS, 60),
            {"learning_rates": {"lora": 0.5, "heads": 1e-3, "tokens": 1e-3}},
            ["stages.stage1.learning_rates.lora: 0.5 is far", "stages.stage2.learning_rates.lora: 0.5 is far"],
        ),
        (((), 60), {}, ["stages.stage1.data: no answer calls a head", "stages.stage2.data: no answer calls a head"]),
    ],
)
def test_what_speaks_against_a_run_is_said(world, model, data, changes, sentences):
    questions, num_plain = data
    fine = {"steps": 400, "learning_rates": {"lora": 1e-3, "heads": 1e-3, "tokens": 1e-3}}
    found = said(world, model, data=[write(world[0], "other", questions, num_plain)], **(fine | changes))
    assert len(found) == len(sentences), found
    for sentence, start in zip(found, sentences, strict=True):
        assert sentence.startswith(start)


def test_of_a_large_file_a_part_is_looked_at(world, model):
    data = [write(world[0], "large", 800 * WORDINGS, num_plain=2400)]
    (sentence,) = said(world, model, data=data, steps=10, learning_rates={"lora": 1e-3, "heads": 1e-3, "tokens": 1e-3})
    assert sentence.startswith("point: its loss trains for 10 steps")


def test_a_wrong_record_of_a_large_file_is_left_to_training(world, model, monkeypatch):
    data = write(world[0], "wrong", 40 * WORDINGS, num_plain=120)
    with open(data["file"], "a") as file:
        file.write('{"conversations": []}\n')
    monkeypatch.setattr(records, "CHECK_LIMIT", 100)
    assert said(world, model, data=[data]) == said(world, model, data=[write(world[0], "right", 40 * WORDINGS, 120)])


def test_a_run_says_it_once_before_it_trains(world, caplog):
    train(TrainConfig.from_dict({**world[1], "output_dir": str(world[0] / "said")}, where="config"))
    assert "point: the data has 16 answers for it" in caplog.text
