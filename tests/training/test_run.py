"""A whole run of three stages: its files, its result, and going on after a kill."""

import dataclasses
import json
import os
import shutil
import signal

import pytest
import tiny_run
import torch
from harm import emptied, flipped, halved
from ranks import in_a_child
from safetensors.torch import load_file

from tpo_plugin import TPOError, unregister_plugin
from tpo_plugin.data import records
from tpo_plugin.training import checkpoints
from tpo_plugin.training.config import DataSource, TrainConfig
from tpo_plugin.training.run import load_run, read_run, train

# PEFT 0.21 asks transformers 5.23 by an old name.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),  # the tiny host comes from nowhere
]

WEIGHTS = ["adapter_model.safetensors", "tpo_model.safetensors", "tpo_host_weights.safetensors"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was never stopped."""
    torch.set_num_threads(1)
    tiny_run.install_head()
    folder = tmp_path_factory.mktemp("finished")
    return train(tiny_run.write_world(folder))


def logs_of(run):
    """Every line of the log, without times."""
    entries = [entry for stage in read_run(run)["stages"].values() for entry in stage["log"]]
    timing = ("runtime", "per_second", "preparation_time")
    return [{key: value for key, value in entry.items() if not key.endswith(timing)} for entry in entries]


def assert_bitwise(run, expected):
    for name in WEIGHTS:
        mine, theirs = load_file(run / name), load_file(expected / name)
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            assert torch.equal(mine[key], value), (name, key)
    assert logs_of(run) == logs_of(expected)


def test_result(finished):
    saved = read_run(finished)
    assert list(saved["stages"]) == ["stage1", "stage2", "stage3"]
    assert [stage["steps"] for stage in saved["stages"].values()] == [6, 12, 6]
    losses = [entry["loss"] for entry in saved["stages"]["stage2"]["log"] if "loss" in entry]
    assert losses[-1] < losses[0]
    evaluation = saved["stages"]["stage2"]["evaluation"]
    assert {"eval_loss", "eval_loss_point", "eval_assign_accuracy", "eval_false_trigger_rate"} <= set(evaluation)
    assert evaluation["eval_point_loss_l2"] == pytest.approx(evaluation["eval_loss_point"], rel=1e-4)
    assert ", 0 skipped" in saved["stages"]["stage2"]["media"]
    for name in [*WEIGHTS, "tpo_config.json", "tokenizer_config.json", "config.yaml"]:
        assert (finished / name).is_file(), name


def test_stages_train_their_parts(finished):
    host = load_run(finished)
    first = load_file(finished / "stage1" / "final" / "tpo_model.safetensors")
    last = load_file(finished / "tpo_model.safetensors")
    start = tiny_run.host_with_tpo()[0].tpo.state_dict()
    assert first["heads.point.proj.weight"].shape == start["heads.point.proj.weight"].shape
    changed = {key for key in last if not torch.equal(first[key], last[key])}
    assert changed == set(last), "stage 2 trains heads and all token rows"
    assert not (finished / "stage1" / "final" / "tpo_host_weights.safetensors").exists()
    norms = load_file(finished / "tpo_host_weights.safetensors")
    assert norms
    assert all("norm" in name for name in norms)
    original = load_file(finished.parent / "host" / "model.safetensors")
    assert any(
        not torch.equal(value, original[name.removeprefix("base_model.model.")]) for name, value in norms.items()
    )
    assert not host.training


def test_loaded_run_computes_what_was_trained(finished):
    model = load_run(finished)
    own = dict(model.named_parameters())
    for name, value in load_file(finished / "tpo_host_weights.safetensors").items():
        assert torch.equal(own[name], value)
    for name, value in load_file(finished / "adapter_model.safetensors").items():
        assert torch.equal(own[name.replace(".weight", ".default.weight")], value)
    ids = torch.tensor([[1, 4, 5, 8, model.tpo.token_ids["point"][0], model.tpo.token_ids["point"][1]]])
    with torch.no_grad():
        again = load_run(finished)
        assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
        assert model.tpo.last_output.predictions["point"].shape == (1, 2)


# Stage 1 has 12 forwards, stage 2 24: in the second half of a step, before and after a checkpoint, in stage 1, and in
# the second step after the checkpoint of an epoch's end, where the first evaluation is.
@pytest.mark.parametrize(
    "kill_at", [pytest.param(8, marks=pytest.mark.slow), 27, pytest.param(30, marks=pytest.mark.slow)]
)
def test_killed_and_resumed_is_bitwise_the_same(finished, kill_at, tmp_path):
    config = tiny_run.write_world(tmp_path)

    def die():
        tiny_run.PointHead.num_forwards = 0
        os.environ |= {"AT": str(kill_at), "SIGNAL_AT": "9"}
        train(config)

    log = tmp_path / "log"
    status = os.waitstatus_to_exitcode(os.waitpid(in_a_child(die, log), 0)[1])
    assert status == -signal.SIGKILL, log.read_text()
    run = tmp_path / "run"
    assert not (run / "run.json").exists()
    assert checkpoints.last_checkpoint(run / ("stage1" if kill_at < 12 else "stage2")) is not None
    with pytest.raises(TPOError, match="its run is unfinished, and goes on with: tpo train"):
        load_run(run)
    train(config)
    assert_bitwise(run, finished)


@pytest.mark.parametrize(
    ("stop_at", "step"), [(17, 3), pytest.param(24, 6, marks=pytest.mark.slow)]
)  # in the middle of an epoch, and in its last step
def test_stopped_by_a_signal_and_resumed_is_bitwise_the_same(finished, stop_at, step, tmp_path, monkeypatch):
    config = tiny_run.write_world(tmp_path)
    monkeypatch.setattr(tiny_run.PointHead, "num_forwards", 0)
    monkeypatch.setenv("AT", str(stop_at))
    monkeypatch.setenv("SIGNAL_AT", str(int(signal.SIGTERM)))
    with pytest.raises(SystemExit) as stopped:
        train(config)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert checkpoints.last_checkpoint(tmp_path / "run" / "stage2").endswith(f"checkpoint-{step}")
    monkeypatch.delenv("AT")
    train(config)
    assert_bitwise(tmp_path / "run", finished)


def test_goes_on_from_the_checkpoint_before_one_that_is_damaged(finished, tmp_path, caplog):
    shutil.copytree(finished.parent, tmp_path / "world")
    run = tmp_path / "world" / "run"
    (run / "run.json").unlink()
    shutil.rmtree(run / "stage3")
    (run / "stage2" / "stage.json").unlink()
    halved(run / "stage2" / "checkpoint-12" / "optimizer.pt")
    config = TrainConfig.from_yaml(run / "config.yaml")
    config.output_dir = str(run)
    train(config)
    assert [line for line in caplog.messages if "checkpoint-12 is passed over: optimizer.pt has" in line]
    assert_bitwise(run, finished)


def test_a_stage_whose_weights_are_damaged_is_refused_by_name(half_done):
    flipped(half_done.parent / "run" / "stage2" / "final" / "tpo_model.safetensors")
    with pytest.raises(TPOError, match=r"stage2/final is damaged: tpo_model.safetensors is not as it was written"):
        train(half_done)


@pytest.mark.parametrize("damage", [emptied, halved, lambda path: path.write_text("[]")])
def test_a_stage_whose_log_is_damaged_is_refused_by_name(half_done, damage):
    damage(half_done.parent / "run" / "stage2" / "stage.json")
    with pytest.raises(TPOError, match=r"stage2.stage.json: .* what the stage logged; remove .*stage2 to train"):
        train(half_done)


def test_finished_run_is_not_repeated(finished):
    before = (finished / "run.json").stat().st_mtime_ns
    assert train(finished.parent / "config.yaml") == finished
    assert (finished / "run.json").stat().st_mtime_ns == before


def test_resume_is_refused_when_it_is_not_wanted_or_not_the_same(finished):
    with pytest.raises(TPOError, match="has a run already: resume it, or give another output_dir"):
        train(finished.parent / "config.yaml", resume=False)
    config = TrainConfig.from_yaml(finished.parent / "config.yaml")
    config.seed = 9
    with pytest.raises(TPOError, match=r"the run cannot go on with other settings; .*\n  seed: was 1, is 9$"):
        train(config)


@pytest.fixture
def half_done(finished, tmp_path):
    """A copy of the run that was stopped after its second stage: its configuration's path."""
    shutil.copytree(finished.parent, tmp_path / "world")
    run = tmp_path / "world" / "run"
    (run / "run.json").unlink()
    shutil.rmtree(run / "stage3")
    for path in (run / "config.yaml", run.parent / "config.yaml"):
        path.write_text(path.read_text().replace(str(finished), str(run)))
    return run.parent / "config.yaml"


def test_what_has_not_begun_may_change(finished, half_done):
    config = TrainConfig.from_yaml(half_done)
    config.stages["stage3"].learning_rates = {"heads": 1e-3, "lora": 1e-4}
    config.stages["stage3"].steps = 2
    config.stages["stage1"].save_steps = 7
    config.stages["stage2"].logging_steps = 5
    config.stages["last"] = dataclasses.replace(config.stages["stage3"], steps=1)
    run = train(config)
    assert [stage["steps"] for stage in read_run(run)["stages"].values()] == [6, 12, 2, 1]
    assert TrainConfig.from_yaml(run / "config.yaml") == config
    weights = [load_file(folder / "stage2" / "final" / "tpo_model.safetensors") for folder in (run, finished)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.parametrize(
    ("stage", "field", "value", "message"),
    [
        ("stage1", "epochs", 3.0, r"stages.stage1.epochs: was 1.0, is 3.0"),
        ("stage2", "learning_rates", {"heads": 1e-3}, r"stages.stage2.learning_rates.heads: was 0.01, is 0.001"),
        ("stage2", "losses", ["mllm"], r"stages.stage2.losses\[0\]: was not set, is 'mllm'"),
    ],
)
def test_what_has_trained_may_not_change(half_done, stage, field, value, message):
    config = TrainConfig.from_yaml(half_done)
    setattr(config.stages[stage], field, value)
    before = (half_done.parent / "run" / "config.yaml").read_text()
    with pytest.raises(TPOError, match=message):
        train(config)
    assert (half_done.parent / "run" / "config.yaml").read_text() == before


def test_stages_that_have_trained_keep_their_place(half_done):
    config = TrainConfig.from_yaml(half_done)
    config.stages = {name: config.stages[name] for name in ("stage2", "stage1", "stage3")}
    with pytest.raises(TPOError, match="stages: began with stage1, stage2, and would be stage2, stage1, stage3"):
        train(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": [DataSource(file="none.jsonl")]}, r"stages.stage3.data\[0\]: none.jsonl: .*"),
        ({"eval_data": [DataSource(file="none.jsonl")]}, r"stages.stage3.eval_data\[0\]: none.jsonl: .*"),
        ({"data": []}, "stages.stage3.data: is empty; name at least one file of records"),
        ({"learning_rates": {}}, "stages.stage3.learning_rates: is empty; expected the rate of at least one part"),
        ({"learning_rates": {"hands": 1.0}}, r"stages.stage3.learning_rates: has 'hands'.*did you mean 'heads'\?"),
        ({"losses": ["mllm", "pont"]}, r"stages.stage3.losses\[1\]: is 'pont'; did you mean 'point'\?"),
        ({"batch_size": 5}, "stages.stage3: batch_size 5 is not a multiple of micro_batch_size 2"),
        ({"trainer": {"optm": "sgd"}}, r"stages.stage3.trainer: unknown key 'optm'; did you mean 'optim'\?"),
        ({"trainer": {"adam_beta1": "big"}}, "stages.stage3.trainer: adam_beta1: is 'big'; expected a finite number"),
        ({"scheduler": "cosinus"}, "stages.stage3: its TrainingArguments cannot be made: .*cosinus"),
    ],
)
def test_all_stages_are_checked_before_the_first_trains(tmp_path, changes, message):
    torch.set_num_threads(1)
    tiny_run.install_head()
    config = TrainConfig.from_yaml(tiny_run.write_world(tmp_path))
    config.stages["stage3"] = dataclasses.replace(config.stages["stage3"], **changes)
    with pytest.raises(TPOError, match=message):
        train(config)
    assert not (tmp_path / "run" / "stage1").exists()


def test_killed_at_the_end_of_a_stage(finished, tmp_path):
    """The last checkpoint is there, and the one that it was to replace; the stage's result is not.

    Nothing is trained twice, and no checkpoint too many is left.
    """
    shutil.copytree(finished.parent, tmp_path / "world")
    run = tmp_path / "world" / "run"
    kept = sorted(run.glob("stage3/checkpoint-*"))
    shutil.copytree(kept[0], run / "stage3" / "checkpoint-1")
    (run / "run.json").unlink()
    (run / "stage3" / "stage.json").unlink()
    shutil.rmtree(run / "stage3" / "final")
    config = TrainConfig.from_yaml(run / "config.yaml")
    text = (run / "config.yaml").read_text().replace(str(finished), str(run))
    (run / "config.yaml").write_text(text)
    config.output_dir = str(run)
    train(config)
    assert_bitwise(run, finished)
    assert sorted(run.glob("stage3/checkpoint-*")) == kept


def test_run_of_a_newer_version(finished, tmp_path):
    saved = json.loads((finished / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(saved | {"format_version": 99, "tpo_plugin": "9.0"}))
    with pytest.raises(TPOError, match=r"format version 99 \(tpo-plugin 9.0\).*pip install -U tpo-plugin"):
        load_run(tmp_path)


def test_run_with_a_head_that_is_not_installed(finished):
    unregister_plugin("point")
    try:
        with pytest.raises(TPOError, match="head 'point' is not installed"):
            load_run(finished)
    finally:
        tiny_run.install_head()


def test_host_without_spare_rows(tmp_path):
    """The vocabulary grows; neither checkpoints nor the result hold the host's matrices."""
    torch.set_num_threads(1)
    tiny_run.install_head()
    run = train(tiny_run.write_world(tmp_path, num_rows=12, stages=["stage2"]))
    model = load_run(run)
    assert model.tpo.growth is not None
    for folder in (run, run / "stage2" / "checkpoint-12"):
        assert not any("embed" in key or "lm_head" in key for key in load_file(folder / "adapter_model.safetensors"))
    assert not (run / "tpo_host_weights.safetensors").exists()


def test_stage_of_lora_alone_leaves_tpo_frozen(tmp_path):
    torch.set_num_threads(1)
    tiny_run.install_head()
    config = TrainConfig.from_yaml(tiny_run.write_world(tmp_path, stages=["stage1", "stage2"]))
    config.stages["stage1"].learning_rates = {"lora": 1e-2}
    config.stages["stage2"].learning_rates = {"lora": 1e-2, "heads": 1e-2}
    run = train(config)
    before, after = (load_file(run / stage / "final" / "tpo_model.safetensors") for stage in ("stage1", "stage2"))
    assert {key for key in after if not torch.equal(before[key], after[key])} == {
        "heads.point.proj.weight",
        "heads.point.proj.bias",
    }
    lora = load_file(run / "stage1" / "final" / "adapter_model.safetensors")
    assert any(value.any() for key, value in lora.items() if "lora_B" in key)


def test_no_run(tmp_path):
    with pytest.raises(TPOError, match=r"has no run.json; expected the output_dir of tpo train"):
        load_run(tmp_path)


def test_host_that_moved(finished, tmp_path):
    saved = json.loads((finished / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(saved | {"host": str(tmp_path / "gone")}))
    with pytest.raises(TPOError, match=r"cannot be loaded.*give host= .--host. if it has moved"):
        load_run(tmp_path)


def test_a_checkpoint_in_the_middle_of_a_run_is_asked(finished, tmp_path):
    """Also of a stage that leaves alone what an earlier one trained, and while the run goes on."""
    for place in ("stage3/checkpoint-6", "stage2/final", "stage2/checkpoint-12"):
        model, saved = load_run(finished / place), load_file(finished / place / "tpo_model.safetensors")
        assert all(torch.equal(value, saved[name]) for name, value in model.tpo.state_dict().items())
    # The run ends with stage 3's last checkpoint.
    ids = torch.tensor([[1, 4, 5, 6, 7]])
    with torch.no_grad():
        ends = [load_run(folder)(input_ids=ids).logits for folder in (finished, finished / "stage3" / "checkpoint-6")]
    assert torch.equal(*ends)


def test_a_checkpoint_has_what_earlier_stages_trained_of_the_host(tmp_path):
    torch.set_num_threads(1)
    tiny_run.install_head()
    config = TrainConfig.from_yaml(tiny_run.write_world(tmp_path, stages=["stage2", "stage3"]))
    config.stages["stage2"].learning_rates = {"lora": 1e-2, "norms": 1e-1}
    config.stages["stage3"].learning_rates = {"lora": 1e-2}
    run = train(config)
    newest = max((run / "stage3").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert (newest / "tpo_host_weights.safetensors").exists()  # load_tpo can do with the checkpoint alone
    models = [load_run(folder).state_dict() for folder in (run, newest)]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_a_checkpoint_without_lora_has_the_host(tmp_path):
    torch.set_num_threads(1)
    tiny_run.install_head()
    config = TrainConfig.from_yaml(tiny_run.write_world(tmp_path, num_rows=12, stages=["stage2"], lora=None))
    config.stages["stage2"].learning_rates = {"heads": 1e-2, "norms": 1e-1}
    run = train(config)
    shutil.rmtree(tmp_path / "host")
    model = load_run(run / "stage2" / "checkpoint-12")
    weights = load_file(run / "tpo_host_weights.safetensors")
    assert weights
    assert all(torch.equal(model.get_parameter(name), value) for name, value in weights.items())
    assert model.tpo.growth is not None


def test_a_folder_that_is_no_checkpoint_is_named(finished, tmp_path):
    with pytest.raises(TPOError, match=r"stage2 has no run.json; expected .*, or a checkpoint in it"):
        load_run(finished / "stage2")
    shutil.copytree(finished / "stage2" / "checkpoint-12", tmp_path / "alone" / "stage2" / "checkpoint-12")
    with pytest.raises(TPOError, match=r"checkpoint-12 has no run.json; expected .*, or a checkpoint in it"):
        load_run(tmp_path / "alone" / "stage2" / "checkpoint-12")
    shutil.copytree(finished.parent, tmp_path / "world")
    halved(tmp_path / "world" / "run" / "stage2" / "checkpoint-12" / "tpo_model.safetensors")
    with pytest.raises(TPOError, match=r"checkpoint-12 is damaged: tpo_model.safetensors has .*; take another"):
        load_run(tmp_path / "world" / "run" / "stage2" / "checkpoint-12")


@pytest.mark.slow
def test_what_an_evaluation_could_not_read_is_said(tmp_path, monkeypatch, caplog):
    """Of a file too large to be checked before; another record stands in."""
    monkeypatch.setattr(records, "CHECK_LIMIT", 0)
    tiny_run.install_head()
    path = tiny_run.write_world(tmp_path, stages=["stage2"])
    values = json.loads(path.read_text())
    stage = values["stages"]["stage2"]
    stage |= {"data": stage["data"][:1], "steps": 2, "eval_data": [{"file": str(tmp_path / "held.jsonl")}]}
    lines = (tmp_path / "tasks.jsonl").read_text().splitlines()
    held_out = [*(lines * 3)[:39], lines[0].replace('"head": "point"', '"head": "pont"')]
    (tmp_path / "held.jsonl").write_text("\n".join(held_out) + "\n")
    path.write_text(json.dumps(values))
    found = read_run(train(path))["stages"]["stage2"]
    assert ", 0 skipped" in found["media"]
    assert ", 1 skipped" in found["evaluation_media"]
    assert "held.jsonl:40" in found["evaluation_media"]
    assert "stage2: in its evaluations others of the same file stood in: media: " in caplog.text
