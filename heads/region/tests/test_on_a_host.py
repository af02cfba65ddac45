"""The region head on a tiny host: records, boxes to predict and boxes that the user gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

import tpo_plugin as tpo
from tpo_plugin.data import Records
from tpo_plugin.testing import tiny_host

BOX, OTHER = [0.25, 0.4, 0.6, 0.8], [0.1, 0.1, 0.3, 0.2]


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return tpo.apply_tpo(*tiny_host(), heads=["region"])


@pytest.fixture
def media(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    return tmp_path


def record(answer: str, tasks: list[dict[str, Any]], question: str = "Where is it?") -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": "1", "image": "a.png", "conversations": turns, "tasks": tasks}


def region(*boxes: list[float]) -> dict[str, Any]:
    return {"head": "region", "boxes": list(boxes)}


def test_each_box_gets_its_tokens(model, media):
    given = record("They are <region> and <region>.", [region(BOX, OTHER), region(OTHER)])
    (answer,) = Records([given], model.tpo, media_root=media)[0].turns[1:]
    pair = "<box_begin><boxes>"
    assert answer.text == f"They are {pair}{pair} and {pair}."
    targets = model.tpo.heads["region"].collate_targets(list(answer.tasks))
    torch.testing.assert_close(targets["boxes_xyxy"], torch.tensor([BOX, OTHER, OTHER]))


def test_a_box_in_the_question_is_an_input(model, media):
    given = record("It is red.", [region(BOX)], question="What colour is <region>?")
    question = Records([given], model.tpo, media_root=media)[0].turns[0]
    assert question.text == "<image>\nWhat colour is <region_box>?"
    inputs = model.tpo.heads["region"].collate_inputs([], list(question.tasks))
    torch.testing.assert_close(inputs["boxes_xyxy"], torch.tensor([BOX]))


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([BOX, [0.1, 0.1, 1.3, 0.2]], r"tasks\[0\]\.boxes\[1\]: x2 is 1\.3; expected a number from 0 to 1"),
        ([[0.6, 0.1, 0.3, 0.2]], r"tasks\[0\]\.boxes\[0\]: x1 is 0\.6 and x2 is 0\.3; expected x1 < x2"),
        ([], r"tasks\[0\]\.boxes: \[\]; expected a list of at least one box|tasks\[0\]\.boxes: is \[\]; expected"),
    ],
)
def test_a_bad_box_is_named_with_its_field(model, media, boxes, message):
    with pytest.raises(tpo.RecordError, match=message):
        Records([record("Here: <region>.", [region(*boxes)])], model.tpo, media_root=media)


def batch_of(model: Any, text: str) -> dict[str, torch.Tensor]:
    return dict(model.tpo.tokenizer(text, return_tensors="pt"))


def test_what_the_user_gives_changes_what_follows(model):
    batch = batch_of(model, "where is <region_box> it stands here <box_begin><boxes>")
    boxes = []
    for given in (BOX, OTHER, BOX):
        with torch.no_grad():
            out = model(**batch, task_inputs={"region": {"boxes_xyxy": torch.tensor([given])}})
        boxes.append(out.tpo.predictions["region"])
    assert torch.equal(boxes[0], boxes[2])
    assert not torch.equal(boxes[0], boxes[1])


def test_given_boxes_stand_in_the_order_of_their_tokens(model):
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    given = torch.tensor([BOX, OTHER])
    batch = batch_of(model, "<region_box> here <region_box>")
    with torch.no_grad():
        model(**batch, task_inputs={"region": {"boxes_xyxy": given}})
        expected = model.tpo.heads["region"].encode({"boxes_xyxy": given})
    where = batch["input_ids"][0] == model.tpo.tokens["region"].input_id
    torch.testing.assert_close(seen[0][0, where], expected)


def test_training_reaches_both_networks(model):
    model.requires_grad_(False)
    model.tpo.requires_grad_(True)
    batch = batch_of(model.train(), "where is <region_box> it stands here <box_begin><boxes> and <box_begin><boxes>")
    boxes = {"region": {"boxes_xyxy": torch.tensor([BOX, OTHER])}}
    given = {"region": {"boxes_xyxy": torch.tensor([BOX])}}
    optimizer = torch.optim.Adam(model.tpo.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        out = model(**batch, task_inputs=given, task_targets=boxes)
        out.tpo.losses["region"].backward()
        losses.append(out.tpo.losses["region"].item())
        optimizer.step()
    for name, parameter in model.tpo.heads["region"].named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert losses[-1] < 0.2 * losses[0]


def test_missing_given_box(model):
    batch = batch_of(model, "where is <region_box> here")
    with pytest.raises(tpo.TPOError, match="expected one for each"):
        model(**batch, task_inputs={"region": {"boxes_xyxy": torch.tensor([BOX, OTHER])}})
