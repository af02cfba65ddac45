"""Rewards of sampled answers by the heads' own metrics, and GRPO with them, against slow computations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor

import tpo_plugin as tpo
from tpo_plugin.generation.answers import HeadOutputs
from tpo_plugin.generation.generate import GenerateOutput
from tpo_plugin.testing import tiny_host

TEMPLATE = "{% for m in messages %}<s> {{ m.content }} </s>{% endfor %}{% if add_generation_prompt %}<s> {% endif %}"
PROMPT = torch.tensor([[1, 4, 5, 6], [1, 5, 6, 7]])
FIRST, SECOND = [0.1, 0.1, 0.6, 0.7], [0.3, 0.2, 0.9, 0.8]
QUESTION = [{"role": "user", "content": "where is it"}]


def boxes(*given: list[float]) -> dict[str, Any]:
    return {"head": "region", "boxes": list(given)}


class Says(LogitsProcessor):
    """Makes the rows of a batch say these tokens, and end."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        column = input_ids.shape[1] - PROMPT.shape[1]
        wanted = [row[column] if column < len(row) else 2 for row in self.rows]
        return torch.full_like(scores, -100.0).scatter_(1, torch.tensor(wanted)[:, None], 0.0)


@pytest.fixture
def model() -> Any:
    model, tokenizer = tiny_host()
    tokenizer.chat_template = TEMPLATE
    return tpo.apply_tpo(model, tokenizer, heads=["region"])


def answers(model: Any, *rows: list[int], max_new_tokens: int = 8) -> list[list[int]]:
    """What a trainer hands over of the answers that say these tokens: each up to its end."""
    given = model.generate(
        input_ids=PROMPT, logits_processor=[Says(list(rows))], max_new_tokens=max_new_tokens, do_sample=False
    )
    new = given[:, PROMPT.shape[1] :].tolist()
    return [row[: row.index(2) + 1] if 2 in row else row for row in new]


def iou(one: list[float], other: list[float]) -> float:
    """Of two boxes, by their corners."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inner = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return inner / (sum(areas) - inner)


def said(model: Any) -> list[list[list[float]]]:
    """The boxes of each answer."""
    return [[p.value.tolist() for p in row if p.value is not None] for row in model.tpo.last_generated.predictions]


def test_the_iou_of_each_answer(model):
    trigger, task = model.tpo.token_ids["region"]
    reward = tpo.HeadReward(model, "region", "mean_iou")
    assert reward.__name__ == "region_mean_iou"
    two, one = [trigger, task, trigger, task], [9, trigger, task]
    rows = answers(model, two, one)
    (first, second), (third,) = said(model)
    expected = [(iou(first, FIRST) + iou(second, SECOND)) / 2, iou(third, SECOND)]
    assert reward(completion_ids=rows, tasks=[[boxes(FIRST, SECOND)], [boxes(SECOND)]]) == pytest.approx(expected)
    assert min(expected) > 0.1
    # too few and too many of them count as nothing
    expected = [iou(first, FIRST) / 2, iou(third, FIRST) / 2]
    given = [[boxes(FIRST)], [boxes(FIRST), boxes(SECOND)]]
    assert reward(completion_ids=rows, tasks=given, prompts=["", ""]) == pytest.approx(expected)
    # a task of two boxes is answered by both or not at all
    assert reward(completion_ids=rows, tasks=[[], [boxes(FIRST, SECOND)]]) == [0.0, 0.0]


def test_what_was_not_asked_and_not_answered(model):
    trigger, _ = model.tpo.token_ids["region"]
    reward = tpo.HeadReward(model, "region", "acc@0.5")
    rows = answers(model, [9, 10], [9, 10])
    assert reward(completion_ids=rows, tasks=[[], [boxes(FIRST)]]) == [1.0, 0.0]
    assert reward(completion_ids=rows, tasks=[None, [boxes(FIRST) | {"points": None}]]) == [1.0, 0.0]  # as Arrow has it
    rows = answers(model, [9, trigger], [9, trigger], max_new_tokens=2)  # cut off behind the trigger
    assert reward(completion_ids=rows, tasks=[[], [boxes(FIRST)]]) == [0.0, 0.0]


def test_a_loss_of_a_head_without_metrics(echo):
    model, tokenizer = tiny_host()
    tpo.apply_tpo(model, tokenizer, heads=[echo])
    trigger, task = model.tpo.token_ids[echo]
    rows = answers(model, [trigger, task], [9, trigger, task])
    first = model.tpo.last_generated.predictions[0][0].value
    near = (first + 0.1).tolist()
    found = tpo.HeadReward(model, echo, "loss_echo")(
        completion_ids=rows, tasks=[[{"head": echo, "state": near}], [{"head": echo, "state": [100.0] * 32}]]
    )
    assert found == pytest.approx([math.exp(-32 * 0.01), 0.0], abs=1e-4)


def test_the_spans_and_the_masks_of_an_answer():
    """By the heads' own metrics, of outputs made by hand."""
    rle = pytest.importorskip("tpo_head_mask.rle")
    pytest.importorskip("tpo_head_temporal")
    model, tokenizer = tiny_host()
    mask = {"size": "micro", "image_size": 64}
    tpo.apply_tpo(model, tokenizer, heads=["temporal", "mask"], config=tpo.TPOConfig(heads={"mask": mask}))
    true = np.zeros((4, 8), dtype=bool)
    true[:2, :4] = True
    shifted = np.roll(true, 2, axis=1)  # half of it on the true one: 4 of 12 pixels
    spans = torch.tensor([[[2.0, 6.0], [0.0, 1.0]]])
    outputs = {
        "temporal": HeadOutputs({"spans_s": spans}, [(0, 5)]),
        "mask": HeadOutputs({"tracks": [{"masks": [rle.encode(shifted)], "times": [0.0], "score": 1.0}]}, [(1, 5)]),
    }
    sequences = torch.tensor([[1, 4, 9], [1, 4, 10]])
    model.tpo.hooks.now.last_generated = GenerateOutput(sequences, [[], []], None, 2, outputs)
    tasks = [
        [{"head": "temporal", "spans": [[3.0, 8.0], [20.0, 30.0]]}],
        [{"head": "mask", "masks": [rle.encode(true)]}],
    ]
    given = {"completion_ids": [[9], [10]], "tasks": tasks}
    assert tpo.HeadReward(model, "temporal", "mIoU")(**given) == pytest.approx([3 / 6, 1.0])
    assert tpo.HeadReward(model, "mask", "J")(**given) == pytest.approx([1.0, 4 / 12])


def test_wrong_use_is_told(model):
    with pytest.raises(tpo.TPOError, match=r"'regoin' is not among the applied heads \['region'\].*did you mean"):
        tpo.HeadReward(model, "regoin", "mean_iou")
    reward = tpo.HeadReward(model, "region", "iou")
    with pytest.raises(tpo.TPOError, match="made nothing"):
        reward(completion_ids=[[9]], tasks=[[]])
    trigger, task = model.tpo.token_ids["region"]
    rows = answers(model, [trigger, task], [9, 10])
    asked = [[boxes(FIRST)], []]
    with pytest.raises(tpo.TPOError, match=r"computed \['acc@0.5',.*'mean_iou'\].* no 'iou'"):
        reward(completion_ids=rows, tasks=asked)
    with pytest.raises(tpo.TPOError, match=r"got the columns \['prompts'\] and no 'tasks'"):
        reward(completion_ids=rows, prompts=[])
    with pytest.raises(tpo.TPOError, match="made 2 answers, which are others"):
        reward(completion_ids=[rows[0], [9, 9, 2]], tasks=asked)
    with pytest.raises(tpo.RecordError, match=r"row 0 of the batch.*tasks\[0\].boxes\[0\]"):
        reward(completion_ids=rows, tasks=[[boxes([0.5, 0.1, 0.2, 0.3])], []])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_trl_trains_the_triggers_with_the_iou(model, tmp_path, kind):
    """Two steps of TRL's trainer, as it is: rewards and log-probabilities as they are computed slowly."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    trigger, task = model.tpo.token_ids["region"]
    row = model.tpo.embeddings["region"].output
    with torch.no_grad():  # a host that never learned calls the head now and then
        hidden = model.model(PROMPT).last_hidden_state[0, -1]
        row.copy_(8 * hidden / hidden.pow(2).sum())
    before, seen = row.clone(), []

    class Watched(getattr(trl, f"{kind}Trainer")):
        def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
            found = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
            with torch.no_grad():
                logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
            chosen = input_ids[:, 1:]
            slow = logits.log_softmax(-1).gather(-1, chosen[..., None])[..., 0]
            slow = slow.masked_fill((chosen == task) | (attention_mask[:, 1:] == 0), 0.0)[:, -logits_to_keep:]
            torch.testing.assert_close(found[0].detach(), slow)
            seen.append(chosen)
            return found

    rewards: list[list[float]] = []

    class Slow:
        """The reward, and beside it the slow one."""

        def __init__(self) -> None:
            self.reward = tpo.HeadReward(model, "region", "mean_iou")

        def __call__(self, **given: Any) -> list[float]:
            found = self.reward(**given)
            called = [ids.count(trigger) for ids in given["completion_ids"]]
            slow = []
            for its_boxes, times, tasks in zip(said(model), called, given["tasks"], strict=True):
                best = iou(its_boxes[0], tasks[0]["boxes"][0]) / times if its_boxes and tasks else 0.0
                slow.append(best if tasks else float(not times))
            assert found == pytest.approx(slow, abs=1e-6)
            rewards.append(found)
            return found

    arguments = getattr(trl, f"{kind}Config")(
        str(tmp_path), max_steps=2, per_device_train_batch_size=16, num_generations=8, max_completion_length=8,
        learning_rate=1e-2, logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        bf16=False, beta=0.0,
    )  # fmt: skip
    rows = [{"prompt": QUESTION, "tasks": [boxes(FIRST)]}, {"prompt": QUESTION, "tasks": []}] * 4
    trainer = Watched(
        model, reward_funcs=[Slow()], args=arguments, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=model.tpo.tokenizer,
    )  # fmt: skip
    trainer.train()
    logged = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert logged == pytest.approx([sum(each) / len(each) for each in rewards], abs=1e-4)
    assert all(0 < reward < 1 for reward in logged)
    assert all((ids == task).any() for ids in seen)
    assert not torch.equal(row, before)
