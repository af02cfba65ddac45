"""All stages are checked against the host before the first one trains."""

import json
import os

import pytest
import tiny_run
import torch
import yaml

from tpo_plugin import HeadConfig, TPOError
from tpo_plugin.data import Records
from tpo_plugin.training import stages
from tpo_plugin.training.config import TrainConfig
from tpo_plugin.training.run import build_model, train
from tpo_plugin.training.stages import check_stages

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    tiny_run.install_head()
    folder = tmp_path_factory.mktemp("world")
    return folder, yaml.safe_load(tiny_run.write_world(folder).read_text())


@pytest.fixture(scope="module")
def model(world):
    return build_model(TrainConfig.from_dict(world[1], where="config"))


def check(world, model, **changes):
    """Checks the stages, with changes of the last one."""
    values = world[1]["stages"]
    changed = {**world[1], "stages": {**values, "stage3": values["stage3"] | changes}}
    config = TrainConfig.from_dict(changed, where="config")
    return check_stages(model, config, list(config.stages))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rates": {"lora": 1e-3, "head": 1e-3}}, "learning_rates has 'head', which is no part.*'heads'"),
        ({"learning_rates": {"lora": 1e-3, "vision": 1e-3}}, "learning_rates has 'vision', and no parameter belongs"),
        ({"learning_rates": {}}, "learning_rates: is empty; expected the rate of at least one part"),
        (
            {"learning_rates": {"heads": 1e-3}},
            "learning_rates: nothing that trains decides whether a trigger is emitted",
        ),
        ({"losses": ["mllm", "asign"]}, r"losses\[1\]: is 'asign'; did you mean 'assign'"),
        ({"data": []}, "data: is empty; name at least one file of records, or leave the stage out"),
        ({"data": [{"file": "nowhere.jsonl"}]}, r"data\[0\]: nowhere.jsonl: cannot be read: No such file"),
        ({"eval_data": [{"file": "nowhere.jsonl"}]}, r"eval_data\[0\]: nowhere.jsonl: cannot be read: No such file"),
        ({"batch_size": 3}, "batch_size 3 is not a multiple of micro_batch_size 2 x 1"),
        ({"trainer": {"gradient_checkpoint": True}}, "trainer: unknown key 'gradient_checkpoint'; did you mean"),
        ({"trainer": {"adam_beta2": "high"}}, "trainer: adam_beta2: is 'high'; expected a finite number"),
        ({"trainer": {"use_cpu": "yes"}}, "trainer: use_cpu: is 'yes'; expected true or false"),
        ({"trainer": {"optim": "adam_of_mine"}}, "its TrainingArguments cannot be made: .*adam_of_mine"),
        ({"scheduler": "cosin"}, "its TrainingArguments cannot be made: .*cosin"),
    ],
)
def test_a_wrong_stage_is_named(world, model, changes, message):
    with pytest.raises(TPOError, match=rf"^stages\.stage3[.:] ?{message}"):
        check(world, model, **changes)


def test_a_record_that_is_wrong(world, model):
    path = world[0] / "wrong.jsonl"
    path.write_text(json.dumps({"conversations": [{"from": "humn", "value": "x"}]}) + "\n")
    with pytest.raises(TPOError, match=rf"^stages\.stage3\.data\[0\]: {path}:1: conversations\[0\]\.from: is 'humn'"):
        check(world, model, data=[{"file": str(path)}])


def test_the_triggers_need_no_learning_where_they_are_not_trained(world, model):
    check(world, model, learning_rates={"heads": 1e-3}, losses=["point"])


def test_nothing_trains_before_all_stages_are_right(world):
    folder, values = world
    wrong = {**values, "output_dir": str(folder / "wrong")}
    wrong["stages"] = {**values["stages"], "stage3": values["stages"]["stage3"] | {"data": [{"file": "nowhere.jsonl"}]}}
    with pytest.raises(TPOError, match="stage3.*nowhere"):
        train(TrainConfig.from_dict(wrong, where="config"))
    assert os.listdir(folder / "wrong") == []


def test_each_file_is_opened_once(world, model, monkeypatch):
    opened = []

    def open_records(source, *args, **kwargs):
        opened.append(source)
        return Records(source, *args, **kwargs)

    monkeypatch.setattr(stages, "Records", open_records)
    check(world, model)
    assert sorted(opened) == sorted(str(world[0] / name) for name in ("tasks.jsonl", "chats.jsonl"))


def test_a_text_number_of_the_trainer_is_a_number(world, model):
    config = TrainConfig.from_dict(world[1], where="config")
    config.stages["stage1"].trainer["adam_epsilon"] = "1e-6"
    assert stages._arguments(model, config, "stage1").adam_epsilon == 1e-6


def test_the_check_leaves_no_trace(world, model, monkeypatch):
    """Some arguments switch a precision or DeepSpeed on in the environment."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "before")
    check(world, model, trainer={**world[1]["stages"]["stage3"]["trainer"], "bf16": True})
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "before"


def test_a_stage_takes_the_weight_that_a_head_has_beside_others(model, monkeypatch):
    """Where neither the stage nor the run names one."""

    class Loud(HeadConfig):
        weight_beside_others = 0.05

    heads = {"point": Loud(), "other": HeadConfig()}
    monkeypatch.setattr(model.tpo.config, "heads", heads)
    config = TrainConfig(model="host", output_dir="run")
    assert stages._loss_weights(model, config, "stage2") == {"mllm": 1.0, "assign": 1.0, "retain": 0.0, "point": 0.05}
    config.tpo.loss_weights["point"] = 3.0
    assert stages._loss_weights(model, config, "stage2")["point"] == 3.0
    config.stages["stage2"].losses = ["mllm"]
    assert stages._loss_weights(model, config, "stage2") == {"mllm": 1.0, "assign": 0.0, "retain": 0.0, "point": 0.0}
