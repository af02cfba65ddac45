"""The point head on the conformance kit, and its records."""

from pathlib import Path

import torch

import tpo_plugin as tpo
from tpo_plugin.data import Records
from tpo_plugin.testing import TaskHeadTests, tiny_host

RECORDS = Path(__file__).parents[1] / "records.jsonl"


class TestPoint(TaskHeadTests):
    head = "point"

    def make_targets(self, num):
        return {"points_xy": torch.rand(num, 2)}

    def make_task(self):
        return {"points_xy": [0.3, 0.7]}


def test_records_become_tokens_and_targets():
    model = tpo.apply_tpo(*tiny_host(), heads=["point"])
    records = list(Records(RECORDS, model.tpo))
    answers = [record.turns[-1] for record in records]
    assert [answer.text for answer in answers] == [
        "It is here: <point_begin><point>.",
        "The red dot is here: <point_begin><point>, the blue one here: <point_begin><point>.",
    ]
    targets = model.tpo.heads["point"].collate_targets([task for answer in answers for task in answer.tasks])
    torch.testing.assert_close(targets["points_xy"], torch.tensor([[0.5, 0.4], [0.25, 0.75], [0.8, 0.2]]))
    assert all(image.is_file() for record in records for image in record.images)
