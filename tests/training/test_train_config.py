"""The configuration file: the paper's defaults, typos, and what is checked before anything is loaded."""

import json
import subprocess
import sys

import pytest
import tiny_run

from tpo_plugin import TPOError, VideoOptions
from tpo_plugin.plugins import PatchSpec, Plugin, registry
from tpo_plugin.training.config import StageConfig, TrainConfig

MINIMAL = "model: some/host\noutput_dir: runs/one\n"


def read(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return TrainConfig.from_yaml(path)


def test_defaults_are_the_papers(tmp_path):
    config = read(tmp_path, MINIMAL)
    assert (config.lora.r, config.lora.alpha) == (16, 32)
    assert list(config.stages) == ["stage1", "stage2", "stage3"]
    assert [stage.batch_size for stage in config.stages.values()] == [128, 128, 256]
    assert [stage.epochs for stage in config.stages.values()] == [1.0, 1.0, 3.0]
    assert {stage.learning_rates["lora"] for stage in config.stages.values()} == {2e-5}
    rates = {name: stage.learning_rates for name, stage in config.stages.items()}
    assert rates["stage2"]["heads"] == rates["stage2"]["tokens"] == 1e-4
    assert rates["stage3"]["vision"] == rates["stage3"]["connector"] == 2e-5
    assert config.stages["stage1"].losses == ["mllm", "assign"]
    for stage in config.stages.values():
        assert (stage.warmup, stage.scheduler, stage.weight_decay) == (0.2, "cosine", 0.02)


def test_keys_of_a_stage_change_its_default(tmp_path):
    config = read(tmp_path, MINIMAL + "stages: {stage1: {}, stage2: {epochs: 3, learning_rates: {heads: 2e-4}}}\n")
    assert config.stages["stage2"].epochs == 3
    assert config.stages["stage2"].batch_size == 128
    assert config.stages["stage2"].learning_rates == {"heads": 2e-4}, "2e-4 is text to YAML"
    assert list(config.stages) == ["stage1", "stage2"]


def test_plain_values_and_back(tmp_path):
    config = read(
        tmp_path, MINIMAL + "tpo: {loss_weights: {assign: 2}}\nstages: {stage1: {data: [{file: a.jsonl, weight: 3}]}}\n"
    )
    assert TrainConfig.from_dict(config.to_dict(), where="here") == config
    assert config.stages["stage1"].data[0].weight == 3


def only(stage):
    return f"stages: {{only: {stage}}}\n"


@pytest.mark.parametrize("names", [["a", "b"], ["stage1", "warm", "stage2", "stage3", "cool-down"]])
def test_any_number_of_stages_in_their_order(tmp_path, names):
    lines = "".join(f"  {name}: {{epochs: {number}, batch_size: 8}}\n" for number, name in enumerate(names, start=1))
    config = read(tmp_path, MINIMAL + "stages:\n" + lines)
    assert list(config.stages) == names
    assert [stage.epochs for stage in config.stages.values()] == [*range(1, len(names) + 1)]
    rates = {name: stage.learning_rates for name, stage in config.stages.items()}
    assert bool(rates.get("stage2")) is ("stage2" in names), "the paper's names start from the paper's schedule"
    assert not any(rate for name, rate in rates.items() if not name.startswith("stage"))


def test_stages_as_keys_of_their_own(tmp_path):
    """The form of a file, and of a saved run, in which stage1, stage2 and stage3 stood beside the others."""
    config = read(tmp_path, MINIMAL + "stage2: {epochs: 3, learning_rates: {heads: 2e-4}}\nstage3: null\n")
    assert list(config.stages) == ["stage1", "stage2"]
    assert config.stages["stage2"].epochs == 3
    assert config.stages["stage2"].batch_size == 128
    saved = config.to_dict()
    stages = saved.pop("stages")
    saved |= {"stage1": stages["stage1"], "stage2": stages["stage2"], "stage3": None}
    saved["data"] |= {"video": {"num_frames": 8}}
    config.data.video = VideoOptions(num_frames=8)
    assert TrainConfig.from_dict(json.loads(json.dumps(saved)), where="run.json: config") == config


@pytest.mark.parametrize("number", ["1e-2", "1E-2", "0.01", "1.0e-2", ".01"])
def test_a_number_with_an_exponent_is_a_number(tmp_path, number):
    config = read(tmp_path, MINIMAL + only(f"{{learning_rates: {{lora: {number}}}, weight_decay: {number}}}"))
    assert (config.stages["only"].learning_rates, config.stages["only"].weight_decay) == ({"lora": 0.01}, 0.01)


RATE = "expected a finite number above 0; leave a part out to freeze it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # misspelt keys
        ("ouput_dir: x\n", "unknown key 'ouput_dir'; did you mean 'output_dir'?"),
        ("lora: {dropuot: 0.1}\n", "lora: unknown key 'dropuot'; did you mean 'dropout'?"),
        ("lora: {rank: 4}\n", "lora: unknown key 'rank' (valid: 'alpha', 'dropout', 'r', 'targets')"),
        ("data: {worker: 4}\n", "data: unknown key 'worker'; did you mean 'num_workers'?"),
        ("data: {video: {num_frame: 2}}\n", "data.video: unknown key 'num_frame'; did you mean 'num_frames'?"),
        ("tpo: {loss_weight: {}}\n", "tpo: unknown key 'loss_weight'; did you mean 'loss_weights'?"),
        (only("{learning_rate: {}}"), "stages.only: unknown key 'learning_rate'; did you mean 'learning_rates'?"),
        (only("{data: [{fil: a}]}"), "stages.only.data[0]: unknown key 'fil'; did you mean 'file'?"),
        (only("{data: [{}]}"), "stages.only.data[0].file: is missing; expected text that is not empty"),
        ("stage2: {learning_rate: {}}\n", "stages.stage2: unknown key 'learning_rate'; did you mean 'learning_rates'?"),
        # another type
        ("seed: 1.5\n", "seed: is 1.5; expected a whole number of at least 0 and below 4294967296"),
        ("seed: true\n", "seed: is True; expected a whole number"),
        ("heads: region\n", "heads: is 'region'; expected a list"),
        ("heads: [1]\n", "heads[0]: is 1; expected text"),
        ("lora: true\n", "lora: is True; expected keys and values or null"),
        ("lora: {r: yes}\n", "lora.r: is True; expected a whole number of at least 1"),
        ("lora: {targets: 5}\n", "lora.targets: is 5; expected text, a list or null"),
        ("data: a.jsonl\n", "data: is 'a.jsonl'; expected keys and values"),
        ("data: {video: 8}\n", "data.video: is 8; expected keys and values"),
        ("tpo: {heads: [a]}\n", "tpo.heads: is ['a']; expected keys and values"),
        ("tpo: {loss_weights: {assign: '1'}}\n", "tpo.loss_weights.assign: is '1'; expected a finite number"),
        ("modules: {mine: '('}\n", "modules.mine: is '('; expected a regular expression"),
        ("dtype: bf16\n", "dtype: is 'bf16'; expected 'auto', 'bfloat16', 'float16' or 'float32'"),
        ("stages: [a]\n", "stages: is ['a']; expected the stages by their names, at least one"),
        (only("[1]"), "stages.only: is [1]; expected keys and values"),
        (only("null"), "stages.only: is None; expected keys and values"),
        (only("{data: a.jsonl}"), "stages.only.data: is 'a.jsonl'; expected a list"),
        (only("{data: [a.jsonl]}"), "stages.only.data[0]: is 'a.jsonl'; expected keys and values"),
        (only("{data: [{file: 5}]}"), "stages.only.data[0].file: is 5; expected text that is not empty"),
        (only("{epochs: true}"), "stages.only.epochs: is True; expected a finite number above 0"),
        (only("{batch_size: '8'}"), "stages.only.batch_size: is '8'; expected a whole number of at least 1"),
        (only("{learning_rates: 1e-4}"), "stages.only.learning_rates: is '1e-4'; expected keys and values"),
        (only("{learning_rates: {lora: fast}}"), f"stages.only.learning_rates.lora: is 'fast'; {RATE}"),
        (only("{losses: mllm}"), "stages.only.losses: is 'mllm'; expected a list that is not empty or null"),
        (only("{trainer: [1]}"), "stages.only.trainer: is [1]; expected keys and values"),
        ("stage1: 5\n", "stages.stage1: is 5; expected keys and values"),
        # out of range
        ("seed: -1\n", "seed: is -1; expected a whole number of at least 0"),
        ("lora: {dropout: 2}\n", "lora.dropout: is 2; expected a finite number of at least 0 and at most 1"),
        ("data: {num_workers: -1}\n", "data.num_workers: is -1; expected a whole number of at least 0"),
        ("data: {video: {fps: 0}}\n", "data.video.fps: is 0; expected a finite number above 0"),
        ("data: {video: {sampling: al}}\n", "data.video.sampling: is 'al'; expected 'uniform', 'middle' or 'fps'"),
        ("tpo: {loss_weights: {assign: .inf}}\n", "tpo.loss_weights.assign: is inf; expected a finite number"),
        (only("{warmup: 1.5}"), "stages.only.warmup: is 1.5; expected a finite number of at least 0 and below 1"),
        (only("{epochs: .nan}"), "stages.only.epochs: is nan; expected a finite number above 0"),
        (only("{batch_size: 0}"), "stages.only.batch_size: is 0; expected a whole number of at least 1"),
        (only("{learning_rates: {lora: 0}}"), f"stages.only.learning_rates.lora: is 0; {RATE}"),
        (only("{learning_rates: {lora: .inf}}"), f"stages.only.learning_rates.lora: is inf; {RATE}"),
        (
            only("{data: [{file: a, weight: -1}]}"),
            "stages.only.data[0].weight: is -1; expected a finite number above 0",
        ),
        (only("{data: [{file: a, weight: 0}]}"), "stages.only.data[0].weight: is 0; expected a finite number above 0"),
        (only("{losses: []}"), "stages.only.losses: is []; expected a list that is not empty or null"),
        ("stages: {}\n", "stages: is {}; expected the stages by their names, at least one"),
        ("stages: {final: {}}\n", "stages: has the key 'final'; expected a stage's name, which is its folder's"),
        ("stages: {../up: {}}\n", "stages: has the key '../up'; expected a stage's name, which is its folder's"),
        (
            "stage1: null\nstage2: null\nstage3: null\n",
            "stages: is {}; expected the stages by their names, at least one",
        ),
        ("stage1: {}\nstages: {only: {}}\n", "stage1: stands beside stages; expected every stage under stages, or"),
        # of the trainer
        (only("{trainer: {learning_rate: 1}}"), "stages.only.trainer: has 'learning_rate'; the stage says it by part"),
        (only("{trainer: {max_steps: 1}}"), "stages.only.trainer: has 'max_steps'; the stage's key is steps"),
        # of parts
        (
            only("{learning_rates: {head: 1}}"),
            "stages.only.learning_rates: has 'head', which is no part of a model",
        ),
        (
            "heads: [point]\n" + only("{learning_rates: {heads.region: 1}}"),
            "stages.only.learning_rates: has 'heads.region', which is no part of a model; did you mean 'heads.point'?",
        ),
        (
            "modules: {nose: x}\n" + only("{learning_rates: {nos: 1}}"),
            "stages.only.learning_rates: has 'nos', which is",
        ),
        # of heads
        ("heads: [pont]\n", "heads: head 'pont' is not installed; did you mean 'point'?"),
        ("heads: [point]\ntpo: {heads: {pont: {}}}\n", "tpo.heads: 'pont' is not applied; did you mean 'point'?"),
        ("tpo: {heads: {point: {triger: a}}}\n", "tpo.heads.point: unknown key 'triger'; did you mean 'trigger'?"),
        ("tpo: {heads: {point: {trigger: 5}}}\n", "tpo.heads.point.trigger: is 5; expected text or null"),
        # of the file
        ("stages: [\n", "not a readable YAML file"),
        ("seed: 1\nseed: 2\n", "not a readable YAML file: the key 'seed' stands twice"),
        (only("{epochs: 1, epochs: 2}"), "not a readable YAML file: the key 'epochs' stands twice"),
        ("seed: 2020-01-01\n", "holds more than plain values: Object of type date"),
        ("x: " + "[" * 5000, "not a readable YAML file: it nests deeper than 100 levels"),
        ("x: " + "{a: " * 5000, "not a readable YAML file: it nests deeper than 100 levels"),
        ("\n".join(" " * i + "a:" for i in range(200)), "not a readable YAML file: it nests deeper than 100 levels"),
    ],
)
def test_mistakes(tmp_path, text, message):
    tiny_run.install_head()
    with pytest.raises(TPOError) as error:
        read(tmp_path, MINIMAL + text)
    assert str(error.value).startswith(f"{tmp_path / 'config.yaml'}: {message}")


def test_all_mistakes_are_named_at_once(tmp_path):
    with pytest.raises(TPOError) as error:
        read(tmp_path, MINIMAL + "seed: -1\n" + only("{stepz: 3, epochs: -1, data: [{file: a}, {fil: a}]}"))
    found = [line.removeprefix(f"{tmp_path / 'config.yaml'}: ").split(";")[0] for line in str(error.value).splitlines()]
    assert found == [
        "seed: is -1",
        "stages.only: unknown key 'stepz'",
        "stages.only.data[1]: unknown key 'fil'",
        "stages.only.data[1].file: is missing",
        "stages.only.epochs: is -1",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected keys and values"),
        (b"# nothing\n", "is empty; expected keys and values"),
        (b"- model\n", "holds a list; expected keys and values"),
        (b"model: caf\xe9\n", "not a readable YAML file: 'utf-8' codec can't decode"),
        (b"model: x\n", "output_dir: is missing; expected text that is not empty"),
        (b"model: ''\noutput_dir: x\n", "model: is ''; expected text that is not empty"),
    ],
)
def test_whole_files(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(TPOError) as error:
        TrainConfig.from_yaml(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_missing_file(tmp_path):
    with pytest.raises(TPOError, match="none.yaml: not a readable YAML file"):
        TrainConfig.from_yaml(tmp_path / "none.yaml")


def test_fields_that_were_set_since_are_checked():
    with pytest.raises(TPOError, match=r"StageConfig: epochs: is -1; expected a finite number above 0"):
        StageConfig(epochs=-1)
    config = TrainConfig(model="m", output_dir="o")
    config.stages["stage1"].epochs = -1
    with pytest.raises(TPOError, match=r"here: stages.stage1.epochs: is -1; expected a finite number above 0"):
        TrainConfig.from_dict(config.to_dict(), where="here")


def test_parts_of_an_installed_host(tmp_path, monkeypatch):
    """A patch for a host codebase may call a part what it likes: where the name is none of ours, it is asked."""
    plugin = Plugin("own", "own", "1.0")
    hosts = {"broken": "no_such_module:Host", "own": type("Hare", (), {"parts": {"ears": "ear"}})}
    patches = {name: PatchSpec(name, host, lambda model: False, plugin) for name, host in hosts.items()}
    monkeypatch.setattr(registry(), "patches", patches)
    assert read(tmp_path, MINIMAL + only("{learning_rates: {ears: 1}}")).stages["only"].learning_rates == {"ears": 1}
    with pytest.raises(TPOError, match=r"has 'eras', which is no part of a model; did you mean 'ears'\?"):
        read(tmp_path, MINIMAL + only("{learning_rates: {eras: 1}}"))


def test_accumulation():
    stage = StageConfig(batch_size=128, micro_batch_size=8)
    assert [stage.accumulation(ranks) for ranks in (1, 2, 16)] == [16, 8, 1]
    with pytest.raises(TPOError, match=r"batch_size 128 is not a multiple of micro_batch_size 8 x 3 rank\(s\)"):
        stage.accumulation(3)


def test_no_torch():
    code = "import sys, tpo_plugin.training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
