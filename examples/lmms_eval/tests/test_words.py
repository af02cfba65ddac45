"""The words of answers, without lmms-eval."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from PIL import Image

import tpo_plugin as tpo

pytest.importorskip("tpo_lmms_eval", reason="needs this package, which has an environment of its own")

from tpo_lmms_eval.words import in_words

from tpo_plugin.asking import Answer
from tpo_plugin.data import Sample


def predicted(name: str, value: Any) -> tpo.Prediction:
    spec = tpo.registry().head(name)
    return tpo.Prediction(name, 0, value, None, None, "", (0, 0), _head=spec.head_class()(spec.config_class()(), 8))


def test_all_boxes_of_an_answer_are_in_one_list_those_of_a_set_too():
    picture = Sample(None, (Image.new("RGB", (100, 50)),), ())
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0]])
    several = predicted("region_set", {"boxes_xyxy": boxes, "scores": torch.tensor([0.9, 0.8])})
    one = predicted("region", boxes[0])
    in_pixels = [{"bbox_2d": [10.0, 10.0, 50.0, 30.0]}, {"bbox_2d": [0.0, 0.0, 100.0, 50.0]}]
    assert json.loads(in_words(Answer("here", [several, one]), picture)) == [*in_pixels, in_pixels[0]]
    none = predicted("region_set", {"boxes_xyxy": boxes[:0], "scores": torch.zeros(0)})
    assert in_words(Answer("there is none", [none]), picture) == "there is none"
    assert in_words(Answer("a clip", [several]), Sample(None, (), ())) == "a clip"
