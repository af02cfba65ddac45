"""Which settings may change when a run goes on, and which would have trained something else."""

import json
import shutil
from unittest import mock

import pytest
import tiny_run
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tpo_plugin import TPOError
from tpo_plugin.training import run as runs
from tpo_plugin.training.config import StageConfig, TrainConfig
from tpo_plugin.training.resume import check_settings
from tpo_plugin.training.run import load_run, read_run, train
from tpo_plugin.training.signals import StopAtStepEnd

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]


def settings(**changes):
    values = {"model": "host", "output_dir": "runs/one", "stages": {"a": {"steps": 1}, "b": {"steps": 2}, "c": {}}}
    for path, value in changes.items():
        *keys, last = path.split("__")
        inner = values
        for key in keys:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return TrainConfig(**values)


def check(here, begun=("a",), finished=False):
    check_settings(settings(), here, begun=begun, finished=finished, where="run/config.yaml")


@pytest.mark.parametrize(
    "changes",
    [
        {"attn": "sdpa"},
        {"output_dir": "elsewhere/one/"},
        {"data__num_workers": 4},
        {"data__max_bad_share": 0.5},
        {"stages__a__save_steps": 7},
        {"stages__a__logging_steps": 1},
        {"stages__b__steps": 9},
        {"stages__b__learning_rates": {"lora": 1e-3}},
        {"stages": {"a": {"steps": 1}}},
        {"stages": {"a": {"steps": 1}, "d": {}, "b": {"steps": 2}}},
        {"model": "./host/"},
        {"on_nonfinite": "skip"},
        {"stages__a__eval_data": [{"file": "held_out.jsonl"}]},
        {"stages__a__eval_steps": 5},
        {"stages__a__trainer": {"report_to": [], "logging_first_step": True, "save_total_limit": 5, "eval_delay": 2}},
        {"stages__a__trainer": {"dataloader_num_workers": 3, "dataloader_pin_memory": False, "run_name": "b"}},
    ],
)
def test_what_may_change(changes):
    check(settings(**changes))


def test_files_of_which_the_content_is_compared_may_move():
    def run(folder):
        return settings(
            model=f"{folder}/host",
            tpo__heads={"mask": {"checkpoint": f"{folder}/sam.pt"}},
            stages__a__data=[{"file": f"{folder}/a.jsonl", "media": f"{folder}/images"}],
        )

    options = {"begun": ("a",), "finished": False, "where": "run/config.yaml"}
    recorded = ["model", "tpo.heads.mask.checkpoint", "stages.a.data[0]"]
    check_settings(run("old"), run("new"), recorded=recorded, **options)
    for missing, setting in zip(
        recorded, ["model", r"tpo.heads.mask.checkpoint", r"stages.a.data\[0\].file"], strict=True
    ):
        with pytest.raises(TPOError, match=rf"\n  {setting}: was 'old/\S+', is 'new/"):
            check_settings(run("old"), run("new"), recorded=[r for r in recorded if r != missing], **options)
    other = run("new")
    other.stages["a"].data[0].weight = 2.0
    with pytest.raises(
        TPOError, match=r"other output_dir, or change back\n  stages.a.data\[0\].weight: was 1.0, is 2.0$"
    ):
        check_settings(run("old"), other, recorded=recorded, **options)


@pytest.mark.parametrize(
    "stage", [{"trainer": {"load_best_model_at_end": True}}, {"scheduler": "reduce_lr_on_plateau"}]
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"save_steps": 3}, "stages.a.save_steps: was 500, is 3"),
        ({"eval_steps": 3}, "stages.a.eval_steps: was None, is 3"),
        ({"eval_data": [{"file": "b.jsonl"}]}, r"stages.a.eval_data\[0\].file: was not set, is 'b.jsonl'"),
    ],
)
def test_how_is_evaluated_may_not_change_where_it_decides(stage, change, message):
    there, here = (settings(stages={"a": {"steps": 1} | stage | more}) for more in ({}, change))
    with pytest.raises(TPOError, match=message):
        check_settings(there, here, begun=("a",), finished=False, where="run/config.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 3}, "seed: was 0, is 3"),
        ({"model": "other"}, "model: was 'host', is 'other'"),
        ({"heads": ["region"]}, r"heads\[0\]: was not set, is 'region'"),
        ({"lora": None}, r"lora: was not set, is None"),
        ({"lora__r": 8}, r"lora\.r: was 16, is 8"),
        ({"tpo__loss_weights__assign": 2}, r"tpo\.loss_weights\.assign: was not set, is 2\.0"),
        ({"data__video__num_frames": 4}, r"data\.video\.num_frames: was 16, is 4"),
        ({"stages__a__steps": 5}, r"stages\.a\.steps: was 1, is 5"),
        ({"stages__a__learning_rates": {"lora": 1e-3}}, r"stages\.a\.learning_rates\.lora: was not set, is 0\.001"),
        ({"stages__a__trainer": {"adam_beta2": 0.9}}, r"stages\.a\.trainer\.adam_beta2: was not set, is 0\.9"),
        ({"stages": {"b": {"steps": 2}, "a": {"steps": 1}}}, "stages: began with a, and would be b, a"),
        ({"stages": {"b": {"steps": 2}}}, "stages: began with a, and would be b"),
    ],
)
def test_what_may_not(changes, message):
    with pytest.raises(
        TPOError, match=f"run/config.yaml: the run cannot go on with other settings(?s:.*)\n  {message}"
    ):
        check(settings(**changes))


def test_before_the_first_stage_has_begun_everything_may_change():
    check(settings(seed=3, model="other", stages={"z": {}}), begun=())


def test_no_stage_is_added_to_a_finished_run():
    with pytest.raises(TPOError, match="stages: began with a, b, c, and would be a, b, c, d"):
        check(settings(stages={**settings().stages, "d": StageConfig()}), begun=("a", "b", "c"), finished=True)


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """A run of which the first of two stages is finished."""
    torch.set_num_threads(1)
    tiny_run.install_head()
    folder = tmp_path_factory.mktemp("halfway")
    path = tiny_run.write_world(folder, stages=["stage1", "stage2"])
    values = yaml.safe_load(path.read_text())
    one = {**values, "stages": {"stage1": values["stages"]["stage1"]}}
    path.write_text(yaml.safe_dump(one))
    run = train(path)
    (run / "run.json").unlink()
    return folder, values


def test_a_stage_that_has_not_begun_changes_and_a_moved_folder_goes_on(halfway, tmp_path):
    folder, values = halfway
    shutil.copytree(folder / "run", tmp_path / "moved")
    values["stages"]["later"] = values["stages"].pop("stage2") | {"steps": 1}
    values["output_dir"] = f"{tmp_path / 'moved'}/"
    run = train(TrainConfig.from_dict(values, where="config"))
    assert [stage["steps"] for stage in read_run(run)["stages"].values()] == [6, 1]
    assert list(TrainConfig.from_yaml(run / "config.yaml").stages) == ["stage1", "later"]
    values["stages"]["stage1"]["epochs"] = 2.0
    with pytest.raises(TPOError, match=r"\n  stages\.stage1\.epochs: was 1\.0, is 2\.0$"):
        train(TrainConfig.from_dict(values, where="config"))


def test_a_run_written_before_stages_had_names(halfway, tmp_path):
    """Its config.yaml goes on, and its run.json loads."""
    folder, _ = halfway
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    there = yaml.safe_load((run / "config.yaml").read_text())
    old = {key: value for key, value in there.items() if key != "stages"}
    old |= {"stage1": there["stages"]["stage1"], "stage2": None, "stage3": None}
    (run / "config.yaml").write_text(yaml.safe_dump(old))
    train(TrainConfig.from_dict(there | {"output_dir": str(run)}, where="config"))
    saved = read_run(run)
    (run / "run.json").write_text(json.dumps(saved | {"config": old}))
    assert list(load_run(run).tpo.heads) == ["point"]


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["behind the last checkpoint", "in the middle, and moved", "in the middle, and gone"])
def test_the_best_weights_are_found_again(cut, tmp_path, monkeypatch, caplog):
    """The greatest loss is asked for, which is the first: so the last weights are not the best."""
    tiny_run.install_head()
    path = tiny_run.write_world(tmp_path, stages=["stage2"])
    values = json.loads(path.read_text())
    stage = values["stages"]["stage2"]
    stage |= {"data": stage["data"][:1], "scheduler": "constant", "warmup": 0.0, "save_steps": 2, "eval_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    stage["trainer"] |= best | {"save_total_limit": 10}
    if cut == "behind the last checkpoint":
        path.write_text(json.dumps(values))
        run = train(path)
        wanted = read_run(run)["stages"]["stage2"]["evaluation"]["eval_loss"]
        shutil.rmtree(run / "stage2" / "final")
        (run / "stage2" / "stage.json").unlink()
        (run / "run.json").unlink()
    else:
        path.write_text(json.dumps(values))
        agreed = StopAtStepEnd.on_step_end

        def stopping(self, args, state, control, **kwargs):
            self.received = 15 if state.global_step == 4 else self.received
            return agreed(self, args, state, control, **kwargs)

        monkeypatch.setattr(StopAtStepEnd, "on_step_end", stopping)
        with pytest.raises(SystemExit):
            train(path)
        monkeypatch.setattr(StopAtStepEnd, "on_step_end", agreed)
        (tmp_path / "run").rename(tmp_path / "moved")
        path.write_text(json.dumps(values | {"output_dir": str(tmp_path / "moved")}))
        wanted = None
    if cut == "in the middle, and gone":
        shutil.rmtree(tmp_path / "moved" / "stage2" / "checkpoint-2")
        train(path)
        assert "its best checkpoint" in caplog.text
        assert "is gone; a better one may come" in caplog.text
        return
    run = train(path)
    found = load_file(run / "adapter_model.safetensors")
    best, *_, last = [
        load_file(run / "stage2" / f"checkpoint-{step}" / "adapter_model.safetensors") for step in (2, 4, 6, 8)
    ]
    assert all(torch.equal(value, best[name]) for name, value in found.items())
    assert not all(torch.equal(value, last[name]) for name, value in found.items())
    assert wanted in (None, read_run(run)["stages"]["stage2"]["evaluation"]["eval_loss"])


class NormedConfig(LlamaConfig):
    model_type = "batch_normed_llama"


class BatchNormed(nn.Module):
    def __init__(self, norm, size):
        super().__init__()
        self.norm, self.batch_norm = norm, nn.BatchNorm1d(size)

    def forward(self, states):
        return self.batch_norm(self.norm(states).transpose(1, 2)).transpose(1, 2)


class NormedHost(LlamaForCausalLM):
    config_class = NormedConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.norm = BatchNormed(self.model.norm, config.hidden_size)


@pytest.mark.parametrize("lora", [{"r": 2, "alpha": 4}, None])
def test_what_batch_norms_counted_is_kept(lora, tmp_path):
    """Running statistics move in training though no parameter of theirs trains, as in timm's towers."""
    AutoConfig.register(NormedConfig.model_type, NormedConfig, exist_ok=True)
    AutoModelForCausalLM.register(NormedConfig, NormedHost, exist_ok=True)
    tiny_run.install_head()
    path = tiny_run.write_world(tmp_path, stages=["stage2"])
    old = LlamaForCausalLM.from_pretrained(tmp_path / "host")
    sizes = {name: value for name, value in old.config.to_dict().items() if name != "model_type"}
    host = NormedHost(NormedConfig(**sizes))
    host.load_state_dict(old.state_dict(), strict=False)
    host.save_pretrained(tmp_path / "host")
    values = json.loads(path.read_text()) | {"lora": lora}
    stage = values["stages"]["stage2"]
    stage |= {"data": stage["data"][:1], "steps": 2}
    stage["learning_rates"] = {"heads": 0.02, "tokens": 0.02} | ({"lora": 0.02} if lora else {})
    del stage["eval_data"]
    path.write_text(json.dumps(values))
    with mock.patch.object(runs, "_save_weights", wraps=runs._save_weights) as saving:
        run = train(path)
    trained = [call.args[0] for call in saving.call_args_list]

    def statistics(model):
        return {n.split(".")[-1]: b for n, b in model.named_buffers() if "batch_norm" in n}

    loaded, before = statistics(load_run(run)), statistics(trained[0])
    assert float(before["running_mean"].abs().sum()) > 0
    assert int(before["num_batches_tracked"]) >= 2
    assert all(torch.equal(loaded[name], value) for name, value in before.items())
