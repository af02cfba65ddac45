"""The configuration file: the paper's defaults, typos, and what is checked before anything is loaded."""

import subprocess
import sys

import pytest

from tpo_plugin import TPOError
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
    assert config.stage2.learning_rates["heads"] == config.stage2.learning_rates["tokens"] == 1e-4
    assert config.stage3.learning_rates["vision"] == config.stage3.learning_rates["connector"] == 2e-5
    assert config.stage1.losses == ["mllm", "assign"]
    for stage in config.stages.values():
        assert (stage.warmup, stage.scheduler, stage.weight_decay) == (0.2, "cosine", 0.02)


def test_keys_of_a_stage_change_its_default(tmp_path):
    config = read(tmp_path, MINIMAL + "stage2: {epochs: 3, learning_rates: {heads: 2e-4}}\nstage3: null\n")
    assert config.stage2.epochs == 3
    assert config.stage2.batch_size == 128
    assert config.stage2.learning_rates == {"heads": 2e-4}, "2e-4 is text to YAML"
    assert list(config.stages) == ["stage1", "stage2"]


def test_plain_values_and_back(tmp_path):
    config = read(
        tmp_path, MINIMAL + "tpo: {loss_weights: {assign: 2}}\nstage1: {data: [{file: a.jsonl, weight: 3}]}\n"
    )
    assert TrainConfig(**config.to_dict()) == config
    assert config.stage1.data[0].weight == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ouput_dir: x\n", r"config: unknown key 'ouput_dir'; did you mean 'output_dir'\?"),
        ("stage2: {learning_rate: {}}\n", r"stage2: unknown key 'learning_rate'; did you mean 'learning_rates'\?"),
        ("stage1: {data: [{fil: a}]}\n", r"stage1.data\[0\]: unknown key 'fil'; did you mean 'file'\?"),
        ("stage1: {data: [{}]}\n", r"stage1.data\[0\].*missing.*'file'"),
        ("tpo: {loss_weight: {}}\n", r"tpo: unknown key 'loss_weight'; did you mean 'loss_weights'\?"),
        ("lora: {rank: 4}\n", r"lora: unknown key 'rank'"),
        ("data: {worker: 4}\n", r"data: unknown key 'worker'; did you mean 'num_workers'\?"),
        ("stage1: {learning_rates: {lora: fast}}\n", r"learning_rates\['lora'\] is 'fast'; expected a number above 0"),
        ("stage1: {learning_rates: {lora: 0}}\n", "leave a part out to freeze it"),
        ("stage1: {warmup: 1.5}\n", "warmup is 1.5; expected a share of the steps"),
        ("stage1: {data: [{file: a, weight: -1}]}\n", "weight is -1; expected a number above 0"),
        ("stage1: null\nstage2: null\nstage3: null\n", "expected at least one"),
        ("stage1: 5\n", "stage1: expected keys and values, got 5"),
        ("stage1: [\n", "not a readable YAML file"),
    ],
)
def test_mistakes(tmp_path, text, message):
    with pytest.raises(TPOError, match=message) as error:
        read(tmp_path, MINIMAL + text)
    assert str(tmp_path / "config.yaml") in str(error.value)


def test_missing_key_and_file(tmp_path):
    with pytest.raises(TPOError, match=r"missing.*'output_dir'"):
        read(tmp_path, "model: x\n")
    with pytest.raises(TPOError, match="not a readable YAML file"):
        TrainConfig.from_yaml(tmp_path / "none.yaml")


def test_accumulation():
    stage = StageConfig(batch_size=128, micro_batch_size=8)
    assert [stage.accumulation(ranks) for ranks in (1, 2, 16)] == [16, 8, 1]
    with pytest.raises(TPOError, match=r"batch_size 128 is not a multiple of micro_batch_size 8 x 3 rank\(s\)"):
        stage.accumulation(3)


def test_no_torch():
    code = "import sys, tpo_plugin.training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
