"""Configurations as plain dataclasses."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tpo_plugin import HeadConfig, TPOConfig, TPOError
from tpo_plugin.config import config_from_dict


def test_every_weight_is_one_unless_set() -> None:
    config = TPOConfig(loss_weights={"assign": 0.5, "region": 0})
    assert [config.weight(name) for name in ("mllm", "assign", "region")] == [1.0, 0.5, 0.0]


class LoudConfig(HeadConfig):
    weight_beside_others = 0.05


@pytest.mark.parametrize(
    ("heads", "given", "weight"),
    [
        ({"loud": LoudConfig()}, {}, 1.0),
        ({"loud": LoudConfig(), "region": HeadConfig()}, {}, 0.05),
        ({"loud": LoudConfig(), "region": HeadConfig()}, {"loud": 2.0}, 2.0),
        ({"loud": LoudConfig(), "region": HeadConfig()}, {"loud": 0.0}, 0.0),
    ],
)
def test_a_head_names_its_weight_beside_others(heads: dict, given: dict, weight: float) -> None:
    config = TPOConfig(loss_weights=given, heads=heads)
    assert (config.weight("loud"), config.weight("region"), config.weight("mllm")) == (weight, 1.0, 1.0)


@pytest.mark.parametrize("weight", [-1, float("inf"), float("nan"), "1", True, None])
def test_a_weight_that_is_no_weight_is_refused(weight: object) -> None:
    with pytest.raises(TPOError, match=r"loss_weights.region: is .*; expected a finite number of at least 0"):
        TPOConfig(loss_weights={"region": weight})  # type: ignore[dict-item]


def test_fields_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        TPOConfig({"assign": 1.0})  # type: ignore[misc]
    with pytest.raises(TypeError):
        HeadConfig("<a>")  # type: ignore[misc]


def test_through_json_and_back() -> None:
    config = HeadConfig(trigger="<a>", task_token="<b>")
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    assert config_from_dict(HeadConfig, values, where="head 'point'") == config


def test_an_unknown_key_names_place_and_nearest_key() -> None:
    with pytest.raises(TPOError) as error:
        config_from_dict(HeadConfig, {"triger": "<a>"}, where="head 'point'")
    assert str(error.value).startswith("head 'point': unknown key 'triger'; did you mean 'trigger'?")
