"""The example at a tiny size: its records, GRPO on pictures, and the supervised losses beside it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tpo_shapes.demo import HOST_DIRECTORY
from tpo_shapes.evaluate import read_questions
from transformers import AutoProcessor

from tpo_plugin import apply_tpo
from tpo_plugin.data import Records, TPOCollator, prompt_record, read_sample
from tpo_plugin.training.hosts import load_host

pytest.importorskip("trl")
pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("grpo_example", Path(__file__).parents[1] / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(example: Any, tmp_path_factory: Any) -> dict[str, Path]:
    return example.make_records(tmp_path_factory.mktemp("records"), "train", 12, seed=0)


@torch.no_grad()
def call_sometimes(model: Any, trigger: int, record: Any) -> None:
    """Gives the trigger the likeliest word's logit, and 2, where the answer to a record's first question for a box
    begins, which is a probability of 0.01 to 0.9 at other such questions."""
    states: list[torch.Tensor] = []
    handle = model.lm_head.register_forward_pre_hook(lambda module, args: states.append(args[0][0, -1]))
    asked = zip(record.turns[::2], record.turns[1::2], strict=True)
    question = next(turn.text for turn, answer in asked if answer.tasks).removeprefix("<image>\n")
    sample = read_sample(prompt_record(model.tpo, question, images=record.images))
    logits = model.eval()(**TPOCollator(model.tpo, for_generation=True)([sample])).logits[0, -1]
    handle.remove()
    rows = model.tpo.embeddings["region"]
    rows.output.add_((logits.max() - logits[trigger] + 2) * states[0] / states[0].norm() ** 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("beside", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_reward_is_the_iou_and_trains_what_it_should(example, files, tmp_path, monkeypatch, beside):
    torch.manual_seed(0)
    model = apply_tpo(load_host(str(HOST_DIRECTORY)), AutoProcessor.from_pretrained(HOST_DIRECTORY), heads=["region"])
    assert len(Records(files["tasks"], model.tpo)) == 12
    trigger, _ = model.tpo.token_ids["region"]
    call_sometimes(model, trigger, next(iter(Records(files["tasks"], model.tpo))))
    found: list[tuple[list[float], list[int]]] = []
    reward_class = example.HeadReward

    class Watched(reward_class):
        def __call__(self, *, completion_ids: Any, tasks: Any = None, **columns: Any) -> list[float]:
            rewards = super().__call__(completion_ids=completion_ids, tasks=tasks, **columns)
            found.append((rewards, [ids.count(trigger) for ids in completion_ids]))
            for reward, times, asked in zip(rewards, found[-1][1], tasks, strict=True):
                assert 0 <= reward <= 1
                assert reward == float(not times) if not asked else reward <= 1 / max(times, 1)
            return rewards

    monkeypatch.setattr(example, "HeadReward", Watched)
    rows = example.rows(read_questions(files.values()), 16, 0)
    assert len(rows) == 16
    assert [len(row["tasks"]) for row in rows] == [1] * 8 + [0] * 8
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batches = example.endless(model, files.values(), 4, 0) if beside else None
    logged = example.reinforce(model, rows, tmp_path, 2, 0, batch_size=128, beside=batches, weight=1.0)
    assert logged == pytest.approx([sum(rewards) / len(rewards) for rewards, _ in found], abs=1e-4)
    assert any(times for _, called in found for times in called)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p.detach(), before[name])}
    assert "tpo.embeddings.region.output" in changed
    heads = {name for name in changed if name.startswith("tpo.heads.region.")}
    assert bool(heads) == beside
    assert not any(name.startswith("model.") for name in changed)
