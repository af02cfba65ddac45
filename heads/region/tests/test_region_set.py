"""The set head alone: the network, matching and losses against plain loops, records, metrics, drawing."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
import torch
from PIL import Image
from torch.autograd import gradcheck
from torch.nn import functional as F
from tpo_head_region.boxes import giou_loss, iou
from tpo_head_region.config import RegionSetConfig
from tpo_head_region.set_head import RegionSetHead, match

import tpo_plugin as tpo
from tpo_plugin.data import Records
from tpo_plugin.testing import tiny_host

HIDDEN = 16
A, B, C = [0.1, 0.2, 0.5, 0.6], [0.3, 0.3, 0.9, 0.8], [0.6, 0.1, 0.7, 0.2]
NONE = torch.zeros(0, 4)


@pytest.fixture
def head() -> RegionSetHead:
    torch.manual_seed(0)
    return RegionSetHead(RegionSetConfig(max_boxes=4, width=8), HIDDEN)


def some_boxes(*shape: int) -> torch.Tensor:
    low = torch.rand(*shape, 2) * 0.6
    return torch.cat((low, low + 0.05 + torch.rand(*shape, 2) * 0.3), -1)


# -- the network -------------------------------------------------------------------------------------------------------


def test_network_by_its_formula(head):
    e_ND = torch.randn(3, HIDDEN)
    weights = {name: value.detach() for name, value in head.decoder.named_parameters()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def normed(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    expected = []
    for e_D in e_ND:
        x = linear("views", e_D).view(4, 8)
        for layer in ("layers.0", "layers.1"):
            q, k, v = linear(f"{layer}.qkv", normed(x)).split(8, -1)
            parts = []
            for i in range(0, 8, 2):  # four heads of two numbers
                attention = (q[:, i : i + 2] @ k[:, i : i + 2].T / math.sqrt(2)).softmax(-1)
                parts.append(attention @ v[:, i : i + 2])
            x = x + linear(f"{layer}.out", torch.cat(parts, -1))
            inner = linear(f"{layer}.feed_forward.fc1", normed(x)).clamp(min=0)
            x = x + linear(f"{layer}.feed_forward.fc2", inner)
        expected.append(linear("out.fc2", linear("out.fc1", normed(x)).clamp(min=0)))
    numbers = torch.stack(expected)
    outputs = head(e_ND)
    torch.testing.assert_close(outputs["object"], numbers[..., 4])
    (x, y), (w, h) = (numbers[..., i : i + 2].sigmoid().unbind(-1) for i in (0, 2))
    corners = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), -1)
    torch.testing.assert_close(outputs["boxes_xyxy"], corners)


def test_queries_know_of_each_other(head):
    """What one query says depends on another's part of the embedding's view."""
    e_ND = torch.randn(1, HIDDEN)
    before = head(e_ND)["object"]
    with torch.no_grad():
        head.decoder.views.bias[8:16] += 1  # the second query
    assert not torch.equal(head(e_ND)["object"][0, 0], before[0, 0])


# -- matching and losses -----------------------------------------------------------------------------------------------


def least_cost(boxes: torch.Tensor, logits: torch.Tensor, true: torch.Tensor) -> tuple[int, ...]:
    """The queries of the true boxes, of all ways tried."""

    def cost(queries: tuple[int, ...]) -> float:
        return sum(
            float(5 * (boxes[q] - t).abs().sum() + 2 * giou_loss(boxes[q], t) - logits[q].sigmoid())
            for q, t in zip(queries, true, strict=True)
        )

    return min(itertools.permutations(range(len(boxes)), len(true)), key=cost)


def test_matching_is_the_best_of_all():
    torch.manual_seed(1)
    boxes, logits = some_boxes(20, 4), torch.randn(20, 4)
    truth = [some_boxes(n % 5) for n in range(20)]  # none to as many as there are queries
    rows, queries = match(boxes, logits, truth)
    expected = [(n, q) for n, true in enumerate(truth) for q in least_cost(boxes[n], logits[n], true)]
    assert list(zip(rows.tolist(), queries.tolist(), strict=True)) == expected


def test_loss_is_that_of_a_plain_loop(head):
    torch.manual_seed(2)
    boxes, logits = some_boxes(6, 4), torch.randn(6, 4)
    truth = [some_boxes(n % 4) for n in range(6)]
    sums = dict.fromkeys(("l1", "giou", "object"), 0.0)
    for n, true in enumerate(truth):
        matched = least_cost(boxes[n], logits[n], true)
        for q, t in zip(matched, true, strict=True):
            sums["l1"] += 5 * float((boxes[n, q] - t).abs().sum())
            sums["giou"] += 2 * float(giou_loss(boxes[n, q], t))
        for q in range(4):
            p = float(logits[n, q].sigmoid())
            sums["object"] -= math.log(p if q in matched else 1 - p)
    losses = head.loss({"boxes_xyxy": boxes, "object": logits}, {"boxes_xyxy": truth}, 12)
    expected = {f"loss_region_set_{name}": value / (4 * 12) for name, value in sums.items()}
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(expected, rel=1e-5)


def test_the_order_of_the_true_boxes_does_not_matter(head):
    torch.manual_seed(3)
    outputs, true = head(torch.randn(1, HIDDEN)), some_boxes(3)
    first, second = (head.loss(outputs, {"boxes_xyxy": [t]}, 1) for t in (true, true.flip(0)))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value)


def test_an_empty_set_wants_no_query(head):
    logits = torch.tensor([[0.5, -1.0, 2.0, 0.0]], requires_grad=True)
    boxes = some_boxes(1, 4).requires_grad_()
    losses = head.loss({"boxes_xyxy": boxes, "object": logits}, {"boxes_xyxy": [NONE]}, 1)
    assert losses["loss_region_set_l1"] == losses["loss_region_set_giou"] == 0
    torch.testing.assert_close(losses["loss_region_set_object"], F.softplus(logits).mean())
    sum(losses.values()).backward()
    torch.testing.assert_close(logits.grad, logits.detach().sigmoid() / 4)
    assert torch.equal(boxes.grad, torch.zeros_like(boxes)), "zero, not missing"


def test_gradients_by_finite_differences(head):
    torch.manual_seed(4)
    boxes, logits = some_boxes(2, 4).double().requires_grad_(), torch.randn(2, 4).double().requires_grad_()
    targets = {"boxes_xyxy": [some_boxes(3).double(), NONE.double()]}

    def total(boxes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return sum(head.loss({"boxes_xyxy": boxes, "object": logits}, targets, 2).values())

    assert gradcheck(total, (boxes, logits))


def test_more_boxes_than_queries(head):
    outputs = head(torch.randn(2, HIDDEN))
    with pytest.raises(tpo.TPOError, match=r"a task has 5 boxes; expected at most max_boxes=4, set it higher"):
        head.loss(outputs, {"boxes_xyxy": [NONE, some_boxes(5)]}, 2)


def test_a_model_that_diverged_has_a_loss_that_says_so(head):
    losses = head.loss(head(torch.full((1, HIDDEN), torch.nan)), {"boxes_xyxy": [some_boxes(2)]}, 1)
    assert all(value.isnan() for value in losses.values())


def test_a_few_steps_learn_sets_and_none():
    """Which of four sets an embedding stands for: two boxes, three, one, none; each given once, and no other."""
    torch.manual_seed(0)
    head = RegionSetHead(RegionSetConfig(max_boxes=4, width=32), HIDDEN)
    e_ND = torch.randn(4, HIDDEN)
    targets = {"boxes_xyxy": [torch.tensor(boxes) for boxes in ([A, B], [A, B, C], [C])] + [NONE]}
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        sum(head.loss(head(e_ND), targets, 4).values()).backward()
        optimizer.step()
    metrics = head.metrics()
    metrics.update(head(e_ND), targets)
    assert metrics.compute() == pytest.approx(
        dict.fromkeys(("recall", "precision", "F1", "ap@0.5", "F1_score", "T-acc", "N-acc"), 1.0)
        | {"ap": metrics.compute()["ap"]}
    )
    assert head.score(head(e_ND)).min() > 0.7


# -- records -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({}, "boxes is None; expected a list of boxes .*, or an empty list"),
        ({"boxes": A}, r"boxes\[0\] is 0.1; expected four numbers"),
        ({"boxes": [A] * 5}, "boxes has 5 boxes; expected at most max_boxes=4"),
        ({"boxes": [A, [0.3, 0.1, 0.2, 0.2]]}, r"boxes\[1\]: x1 is 0.3 and x2 is 0.2; expected x1 < x2"),
        ({"boxes": [], "time": -1}, "time is -1; expected seconds"),
    ],
)
def test_tasks_that_cannot_be_used(head, task, message):
    with pytest.raises(ValueError, match=message):
        head.check_task(task)


def test_one_token_for_any_number_of_boxes(head):
    tasks: list[dict[str, Any]] = [{"boxes": [A, B, C, A]}, {"boxes": []}, {"boxes": [B], "time": 1.0}]
    for task in tasks:
        head.check_task(task)
        assert head.num_tokens(task) == 1
    targets = head.collate_targets(tasks)
    assert [len(boxes) for boxes in targets["boxes_xyxy"]] == [4, 0, 1]
    assert all(boxes.shape[1:] == (4,) and boxes.dtype == torch.float32 for boxes in targets["boxes_xyxy"])
    assert head.count_targets(targets) == 3
    assert head.collate_targets([]) == {"boxes_xyxy": []}


def test_config_is_checked():
    with pytest.raises(tpo.TPOError, match=r"width: is 10; expected a whole number .*divisible by 4"):
        RegionSetConfig(width=10)


def test_a_record_on_a_host(tmp_path):
    """All boxes of a task stand behind one pair of tokens, also none; it is trained on as one target."""
    torch.manual_seed(0)
    model = tpo.apply_tpo(*tiny_host(), heads=["region_set"])
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nFind all."}, {"from": "gpt", "value": "<region_set> or <region_set>"}]
    tasks = [{"head": "region_set", "boxes": [A, B, C]}, {"head": "region_set", "boxes": []}]
    data = {"id": "1", "image": "a.png", "conversations": turns, "tasks": tasks}
    (answer,) = Records([data], model.tpo, media_root=tmp_path)[0].turns[1:]
    assert answer.text == "<set_begin><box_set> or <set_begin><box_set>"
    targets = model.tpo.heads["region_set"].collate_targets(list(answer.tasks))
    batch = dict(model.tpo.tokenizer(answer.text, return_tensors="pt"))
    out = model(**batch, task_targets={"region_set": targets})
    expected = sum(model.tpo.heads["region_set"].loss(out.tpo.outputs["region_set"], targets, 2).values())
    torch.testing.assert_close(out.tpo.losses["region_set"], expected)
    data["tasks"][1]["boxes"] = [A] * 21
    with pytest.raises(tpo.RecordError, match=r"tasks\[1\]\.boxes.* 21 boxes; expected at most max_boxes=20"):
        Records([data], model.tpo, media_root=tmp_path)


def test_it_is_applied_where_it_is_named():
    heads = tpo.apply_tpo(*tiny_host()).tpo.heads
    assert "region" in heads
    assert "region_set" not in heads


# -- results -----------------------------------------------------------------------------------------------------------


def outputs_of(*sets: list[tuple[list[float], float]]) -> dict[str, torch.Tensor]:
    """Of two queries each: boxes and probabilities."""
    return {
        "boxes_xyxy": torch.tensor([[box for box, _ in found] for found in sets]),
        "object": torch.tensor([[p for _, p in found] for found in sets]).logit(),
    }


def test_postprocess_keeps_what_is_there_the_best_first(head):
    outputs = outputs_of([(A, 0.6), ([-0.1, 0.5, 0.4, 1.2], 0.9)], [(A, 0.4), (B, 0.5)], [(A, 0.4), (B, 0.1)])
    first, second, third = head.postprocess(outputs)
    torch.testing.assert_close(first["boxes_xyxy"], torch.tensor([[0.0, 0.5, 0.4, 1.0], A]))
    torch.testing.assert_close(first["scores"], torch.tensor([0.9, 0.6]))
    assert second["boxes_xyxy"].tolist() == [pytest.approx(B)]
    assert third["boxes_xyxy"].shape == (0, 4)
    torch.testing.assert_close(head.score(outputs), torch.tensor([0.54, 0.3, 0.54]))


def test_metrics_by_hand(head):
    metrics = head.metrics()
    assert metrics.compute() == metrics.constant() == {}
    assert metrics.quality() is None
    outputs = outputs_of([(A, 0.9), (C, 0.8)], [(A, 0.6), (B, 0.4)], [(A, 0.1), (B, 0.2)])
    metrics.update(outputs, {"boxes_xyxy": [torch.tensor([A, B]), NONE, NONE]})
    # Kept: A right and C wrong; one where none is wanted; none where none is.
    found = metrics.compute()
    assert found["ap@0.5"] == pytest.approx(51 / 101)  # the first by score is right, and nothing is found after it
    expected = {"recall": 1 / 2, "precision": 1 / 3, "F1": 2 / 5, "F1_score": 1 / 3, "T-acc": 1.0, "N-acc": 1 / 2}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert metrics.quality() == pytest.approx(2 / 5)
    assert metrics.missed({"boxes_xyxy": [torch.tensor([C]), NONE]})
    found = metrics.compute()
    expected = {"recall": 1 / 3, "precision": 1 / 3, "T-acc": 1 / 2, "N-acc": 2 / 3}
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_a_duplicate_is_wrong(head):
    metrics = head.metrics()
    metrics.update(outputs_of([(A, 0.9), (A, 0.8)]), {"boxes_xyxy": [torch.tensor([A])]})
    found = metrics.compute()
    assert (found["recall"], found["precision"], found["F1_score"]) == (1.0, 0.5, 0.0)


def test_the_best_constant_set_is_a_true_one(head):
    metrics = head.metrics()
    sets = [torch.tensor([A, C]), torch.tensor([A, C]), torch.tensor([B]), NONE]
    metrics.update(outputs_of(*[[(A, 0.1), (B, 0.1)]] * 4), {"boxes_xyxy": sets})
    assert metrics.constant() == pytest.approx({"F1": 2 * 4 / (8 + 5)})  # A and C, always


def test_pixels_json_and_drawing(head):
    value = {"boxes_xyxy": torch.tensor([[0.25, 0.5, 0.5, 1.0]]), "scores": torch.tensor([0.75])}
    pixels = head.to_units(value, width=640, height=480, duration=None)
    assert head.to_json(pixels) == {"boxes_xyxy": [[160.0, 240.0, 320.0, 480.0]], "scores": [0.75]}
    assert json.loads(json.dumps(head.to_json(value)))["boxes_xyxy"] == [[0.25, 0.5, 0.5, 1.0]]
    with pytest.raises(tpo.TPOError, match="needs width and height; got width=None"):
        head.to_units(value, width=None, height=480, duration=None)
    two = {"boxes_xyxy": torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.6, 0.6, 0.9, 0.9]]), "scores": torch.ones(2)}
    drawn = head.draw(Image.new("RGB", (100, 100), "white"), two)
    assert [drawn.getpixel((x, x)) for x in (10, 59, 20)] == [(255, 140, 0), (255, 140, 0), (255, 255, 255)]
    blank = Image.new("RGB", (100, 100), "white")
    assert head.draw(blank, {"boxes_xyxy": NONE, "scores": torch.zeros(0)}).tobytes() == blank.tobytes()


def test_boxes_are_never_inverted(head):
    boxes = head(10 * torch.randn(50, HIDDEN))["boxes_xyxy"]
    assert (boxes[..., :2] <= boxes[..., 2:]).all()
    assert (iou(boxes, boxes) > 0.99).float().mean() > 0.9
