"""No network goes to a worker process: what reads records is a head's codec, or the head without its weights."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import zoo
from torch import nn

import tpo_plugin as tpo
from tpo_plugin.data import RecordDataset, RecordFormat, Records, TPOCollator, parse_record
from tpo_plugin.data import records as records_module
from tpo_plugin.testing import tiny_host

RECORD = {
    "conversations": [{"from": "human", "value": "where"}, {"from": "gpt", "value": "here <big>"}],
    "tasks": [{"head": "big", "points_xy": [0.5, 0.5]}],
}


class BigHead(tpo.TaskHead):
    """A head with a megabyte of weights, and a plain attribute that its check reads."""

    def __init__(self, config: Any, hidden_size: int) -> None:
        super().__init__()
        self.limit = 0.75
        self.proj = tpo.Linear(hidden_size, 8192)
        self.register_buffer("scale", torch.ones(2))

    def check_task(self, task: dict[str, Any]) -> None:
        if max(task["points_xy"]) > self.limit:
            raise ValueError(f"points_xy is {task['points_xy']}; expected at most {self.limit}")


class ScalingHead(BigHead):
    """One whose collation needs a buffer."""

    def collate_targets(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        return {"points_xy": torch.tensor([task["points_xy"] for task in tasks]) * self.scale}


class DeviceHead(BigHead):
    """One whose collation asks its weights where they are."""

    def collate_targets(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        return {"points_xy": torch.zeros(1, 2, device=next(self.parameters()).device)}


class FailingHead(BigHead):
    """One whose check has a mistake of its own."""

    def check_task(self, task: dict[str, Any]) -> None:
        task["points_xy"].no_such_method()


class Plugin:
    head: type = BigHead

    @tpo.hookimpl
    def register_heads(self, register: Any) -> None:
        register("big", head=self.head, trigger="<big_begin>", task_token="<big>")


@pytest.fixture(params=["on a host", "alone"])
def make_format(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Makes what reads records of a head: `model.tpo`, and the format without a host."""

    def make(head: type) -> Any:
        plugin.head = head  # type: ignore[misc]
        tpo.register_plugin(plugin, "big")
        if request.param == "alone":
            return RecordFormat.of_heads(["big"])
        return tpo.apply_tpo(*tiny_host(), heads=["big"]).tpo

    plugin = Plugin()
    yield make
    tpo.unregister_plugin("big")


def tensors(value: Any) -> list[Any]:
    """What of a pickled value is a tensor or a module."""
    found = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, part: Any) -> Any:
            if isinstance(part, torch.Tensor) or (isinstance(part, nn.Module) and list(part.children())):
                found.append(part)
            return None

    import io

    Pickler(io.BytesIO()).dump(value)
    return found


def test_a_heads_own_codec_has_no_weights(make_format: Any) -> None:
    format = make_format(BigHead)
    records = Records([RECORD], format)
    assert not tensors(records)
    assert len(pickle.dumps(records)) < 5000
    with pytest.raises(tpo.RecordError, match=r"points_xy: is \[0.5, 0.9\]; expected at most 0.75"):
        parse_record(RECORD | {"tasks": [{"head": "big", "points_xy": [0.5, 0.9]}]}, format)
    targets = format.codecs["big"].collate_targets(RECORD["tasks"])
    torch.testing.assert_close(targets["points_xy"], torch.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize("head", [ScalingHead, DeviceHead])
def test_a_codec_that_needs_weights_is_told_to_stand_apart(make_format: Any, head: type) -> None:
    with pytest.raises(
        tpo.TPOError, match=r"head 'big': collate_targets needs the head's weights.*register it: codec="
    ):
        make_format(head).codecs["big"].collate_targets(RECORD["tasks"])


def test_a_mistake_of_the_head_stays_its_own(make_format: Any) -> None:
    with pytest.raises(AttributeError, match="no_such_method"):
        parse_record(RECORD, make_format(FailingHead))


def test_dataset_and_collator_hold_no_network() -> None:
    plugin = Plugin()
    tpo.register_plugin(plugin, "big")
    try:
        tokenizer = zoo.tokenizer()
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
        model = tpo.apply_tpo(zoo.host("llama").build(), tokenizer, heads=["big"])
        dataset = RecordDataset([Records([RECORD], model.tpo)])
        collator = TPOCollator(model.tpo)
        assert len(pickle.dumps(dataset)) < 20_000
        assert not tensors(collator)
        assert not tensors(dataset.sources)
        assert sum(p.numel() for p in model.tpo.heads.parameters()) > 100_000
        again = pickle.loads(pickle.dumps(collator))
        batch = again([dataset[0]])
        torch.testing.assert_close(batch["task_targets"]["big"]["points_xy"], torch.tensor([[0.5, 0.5]]))
    finally:
        tpo.unregister_plugin("big")


def test_a_large_source_says_when_it_is_checked(
    tpo: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(records_module, "CHECK_LIMIT", 1)
    chat = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    with caplog.at_level(logging.WARNING):
        Records([chat, chat], tpo)
    assert [r.getMessage() for r in caplog.records] == [
        "records: 2 records, more than 1, so each is checked when it is first used; `tpo check` checks all"
    ]
