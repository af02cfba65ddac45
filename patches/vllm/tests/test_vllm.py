"""What vLLM's logits become; its own classes are tried where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tpo_patch_vllm import HEADS_FILE, TaskTokenRule

REGION, MASK = (10, 11), (20, 21)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """The part of an exported checkpoint that is read."""
    heads = {
        name: {"trigger": f"<{name}>", "trigger_id": trigger, "task_id": task}
        for name, (trigger, task) in {"region": REGION, "mask": MASK}.items()
    }
    (tmp_path / HEADS_FILE).write_text(json.dumps({"heads": heads, "never_emitted": [11, 21, 30]}))
    return tmp_path


def test_a_task_token_follows_its_trigger_and_nothing_else(exported: Path) -> None:
    rule = TaskTokenRule.read(exported / HEADS_FILE)
    logits = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    logits[:, 30] = 100.0
    given = rule.apply(logits, torch.tensor([10, 5, 20, -1], dtype=torch.int32))
    assert given is logits
    assert given.argmax(-1)[[0, 2]].tolist() == [11, 21]
    assert torch.isfinite(given[[0, 2]]).sum() == 2
    others = [column for column in range(32) if column not in (11, 21, 30)]
    assert torch.equal(given[[1, 3]][:, others], before[[1, 3]][:, others])
    assert torch.isneginf(given[[1, 3]][:, [11, 21, 30]]).all()


def test_sampling_has_no_other_choice(exported: Path) -> None:
    rule = TaskTokenRule.read(exported / HEADS_FILE)
    for dtype in (torch.float32, torch.bfloat16):
        given = rule.apply(torch.zeros(1, 32, dtype=dtype), torch.tensor([10]))
        assert given.softmax(-1)[0, 11] == 1


def config(model: Path, **options: Any) -> SimpleNamespace:
    """What is read of vLLM's configuration."""
    named = SimpleNamespace(model=str(model), revision=None, logits_processors=options.get("logits_processors"))
    scheduler = SimpleNamespace(async_scheduling=options.get("async_scheduling", False))
    return SimpleNamespace(model_config=named, scheduler_config=scheduler, speculative_config=None)


@pytest.fixture
def processor() -> Any:
    pytest.importorskip("vllm.v1.worker.gpu.sample.logits_processor", reason="needs vLLM")
    from tpo_patch_vllm import processor

    return processor


def test_the_older_runners_requests_come_move_and_go(processor: Any, exported: Path) -> None:
    from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors

    made = processor.TaskTokens(config(exported), torch.device("cpu"), False)
    assert LogitsProcessors([made]).non_argmax_invariant == [made]
    answers: list[list[int]] = [[], [], []]

    def chosen(num: int) -> list[int]:
        return made.apply(torch.zeros(num, 32)).argmax(-1).tolist()

    def update(**changes: Any) -> None:
        made.update_state(BatchUpdate(**({"batch_size": 3, "removed": [], "added": [], "moved": []} | changes)))

    update(added=[(row, None, [1, 10], answer) for row, answer in enumerate(answers)])
    assert chosen(3) == [0, 0, 0]  # the trigger of a prompt is not followed
    answers[0].append(10)
    answers[2] += [10, 11, 20]
    made.update_state(None)
    assert chosen(3) == [11, 0, 21]
    update(moved=[(0, 2, processor.MoveDirectionality.SWAP)])
    assert chosen(3) == [21, 0, 11]
    update(batch_size=2, removed=[0], moved=[(2, 0, processor.MoveDirectionality.UNIDIRECTIONAL)])
    assert chosen(2) == [11, 0]
    update(batch_size=2, added=[(0, None, None, [])])
    assert chosen(2) == [0, 0]


def test_model_runner_v2_tells_the_newest_token(processor: Any, exported: Path) -> None:
    made = processor.TaskTokens(config(exported), SimpleNamespace(device=torch.device("cpu")))
    context = SimpleNamespace(input_ids=torch.tensor([4, 20], dtype=torch.int32))
    assert made.apply(torch.zeros(2, 32), context).argmax(-1).tolist() == [0, 21]


def test_vllms_own_loaders_take_it(processor: Any) -> None:
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns, _load_logitsprocs_plugins
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs

    name = "tpo_patch_vllm.processor:TaskTokens"
    assert _load_logitsprocs_by_fqcns([name]) == [processor.TaskTokens]
    assert processor.TaskTokens in _load_logitsprocs_plugins()
    assert processor.TaskTokens in _load_v2_logitsprocs([name])


def test_another_model_is_left_alone(processor: Any, tmp_path: Path) -> None:
    made = processor.TaskTokens(config(tmp_path), torch.device("cpu"), False)
    assert torch.equal(made.apply(torch.ones(2, 32)), torch.ones(2, 32))


def test_a_runner_that_tells_no_tokens_is_refused(processor: Any, exported: Path) -> None:
    older = (torch.device("cpu"), False)
    with pytest.raises(RuntimeError, match="give --logits-processors tpo_patch_vllm.processor:TaskTokens"):
        processor.TaskTokens(config(exported, async_scheduling=True), *older)
    processor.TaskTokens(config(exported, async_scheduling=True, logits_processors=["it"]), *older)
