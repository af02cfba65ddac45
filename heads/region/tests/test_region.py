"""The region head alone: losses, records, metrics, units, drawing."""

import json
import math
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch.autograd import gradcheck
from tpo_head_region.boxes import NUM_FEATURES, fourier_features, giou_loss
from tpo_head_region.config import RegionConfig
from tpo_head_region.head import RegionHead

import tpo_plugin as tpo

HIDDEN = 16
TRUE = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.3, 0.3, 0.9, 0.8]])
PREDICTED = torch.tensor([[0.2, 0.2, 0.4, 0.7], [0.3, 0.3, 0.9, 0.8]])
BOX = {"head": "region", "boxes": [[0.25, 0.4, 0.6, 0.8]], "time": 9.8}


@pytest.fixture
def head() -> RegionHead:
    torch.manual_seed(0)
    return RegionHead(RegionConfig(), HIDDEN)


def test_network_is_the_authors(head):
    """But for the scorer, which they do not have."""
    state = head.state_dict().items()
    shapes = {name: tuple(value.shape) for name, value in state if not name.startswith("scorer.")}
    assert shapes == {
        "decoder.fc1.weight": (HIDDEN // 2, HIDDEN),
        "decoder.fc1.bias": (HIDDEN // 2,),
        "decoder.fc2.weight": (4, HIDDEN // 2),
        "decoder.fc2.bias": (4,),
        "encoder.fc1.weight": (HIDDEN // 2, 4),
        "encoder.fc1.bias": (HIDDEN // 2,),
        "encoder.fc2.weight": (HIDDEN, HIDDEN // 2),
        "encoder.fc2.bias": (HIDDEN,),
    }
    e_ND = torch.randn(3, HIDDEN)
    weights = {name: value.detach() for name, value in head.named_parameters()}
    hidden = (e_ND @ weights["decoder.fc1.weight"].T + weights["decoder.fc1.bias"]).clamp(min=0)
    expected = hidden @ weights["decoder.fc2.weight"].T + weights["decoder.fc2.bias"]
    torch.testing.assert_close(head(e_ND)["boxes_xyxy"], expected)


def test_starts_near_the_centred_box(head):
    boxes = head(torch.randn(500, HIDDEN))["boxes_xyxy"]
    torch.testing.assert_close(boxes.mean(0), torch.tensor([0.25, 0.25, 0.75, 0.75]), atol=0.1, rtol=0)
    assert (boxes[:, :2] < boxes[:, 2:]).all()


def test_l1_giou_by_hand(head):
    losses = head.loss({"boxes_xyxy": PREDICTED}, {"boxes_xyxy": TRUE}, 2)
    # First box: differences 0.1, 0, 0.1, 0.1; intersection 0.2 x 0.4, areas 0.16, 0.1, hull 0.4 x 0.5. Second: exact.
    giou = 0.08 / 0.18 - (0.2 - 0.18) / 0.2
    assert losses["loss_region_l1"].item() == pytest.approx(2 * (0.3 / 4) / 2, rel=1e-5)
    assert losses["loss_region_giou"].item() == pytest.approx((1 - giou) / 5 / 2, rel=1e-5)
    assert set(losses) == {"loss_region_l1", "loss_region_giou"}


def test_l1_giou_is_the_authors_formula_where_all_boxes_are_valid(head):
    losses = head.loss({"boxes_xyxy": PREDICTED}, {"boxes_xyxy": TRUE}, len(TRUE))
    theirs = 2 * (PREDICTED - TRUE).abs().mean() + giou_loss(PREDICTED, TRUE).mean() / 5
    torch.testing.assert_close(sum(losses.values()), theirs)


def test_mse_by_hand():
    head = RegionHead(RegionConfig(loss="mse"), HIDDEN)
    losses = head.loss({"boxes_xyxy": PREDICTED}, {"boxes_xyxy": TRUE}, 2)
    assert set(losses) == {"loss_region_mse"}
    assert losses["loss_region_mse"].item() == pytest.approx(3 * 0.01 / 4 / 2, rel=1e-5)


@pytest.mark.parametrize("loss", ["l1_giou", "mse"])
def test_gradients_by_finite_differences(loss):
    head = RegionHead(RegionConfig(loss=loss), HIDDEN)
    boxes = torch.tensor([[0.21, 0.22, 0.4, 0.7], [0.7, 0.35, 0.4, 0.75]], dtype=torch.float64, requires_grad=True)
    targets = {"boxes_xyxy": TRUE.double()}  # the second predicted box is inverted
    assert gradcheck(lambda value: sum(head.loss({"boxes_xyxy": value}, targets, 2).values()), boxes)


def test_a_few_steps_learn_a_box_even_from_an_inverted_one(head):
    with torch.no_grad():
        head.decoder.fc2.bias.copy_(torch.tensor([0.75, 0.75, 0.25, 0.25]))
    e_ND, targets = torch.randn(1, HIDDEN), {"boxes_xyxy": TRUE[:1]}
    optimizer = torch.optim.Adam(head.decoder.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        sum(head.loss(head(e_ND), targets, 1).values()).backward()
        optimizer.step()
    metrics = head.metrics()
    metrics.update(head(e_ND), targets)
    assert metrics.compute()["mean_iou"] > 0.8


# -- scores ----------------------------------------------------------------------------------------------------------


def test_quality_by_hand(head):
    quality = torch.tensor([0.0, 2.0], requires_grad=True)
    losses = head.loss({"boxes_xyxy": PREDICTED, "quality": quality}, {"boxes_xyxy": TRUE}, 4)
    assert losses["loss_region_quality"] == 0  # the head's loss is the published one
    (gradient,) = torch.autograd.grad(losses["loss_region_quality"], quality)
    reached = torch.tensor([0.08 / 0.18, 1.0])  # least where the score is the IoU
    torch.testing.assert_close(gradient, (quality.sigmoid() - reached) / 4)


def test_the_score_costs_box_and_embedding_nothing(head):
    e_ND, targets = torch.randn(3, HIDDEN, requires_grad=True), {"boxes_xyxy": TRUE[[0, 1, 1]]}
    found = {}
    for scored in (True, False):
        outputs = head(e_ND)
        given = outputs if scored else {"boxes_xyxy": outputs["boxes_xyxy"]}
        gradients = torch.autograd.grad(sum(head.loss(given, targets, 3).values()), [e_ND, *head.decoder.parameters()])
        found[scored] = gradients
    assert all(torch.equal(a, b) for a, b in zip(found[True], found[False], strict=True))


def test_scores_become_the_iou_to_be_expected():
    """Boxes whose IoU the embedding tells, and noise on top that it does not: the mean is learned, and the order."""
    torch.manual_seed(0)
    head = RegionHead(RegionConfig(), HIDDEN)
    e_ND = torch.randn(2000, HIDDEN)
    boxes = head(e_ND)["boxes_xyxy"].detach()
    shift = 0.4 * (2 * e_ND[:, :1]).sigmoid() + 0.05 * torch.rand(2000, 1)
    targets = {"boxes_xyxy": boxes + shift}
    optimizer = torch.optim.Adam(head.scorer.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(head(e_ND), targets, 2000)["loss_region_quality"].backward()
        optimizer.step()
    metrics = head.metrics()
    metrics.update(head(e_ND), targets)
    found = metrics.compute()
    assert found["calibration_error"] < 0.02
    assert 0.1 < found["acc@0.5"] < 0.4
    assert found["ap@0.5"] > 0.95 * found["acc@0.5"]  # the right ones come first


def test_weights_of_an_adapter_alone_leave_the_scores(head):
    """As PEFT and the Trainer load them into the whole model when a run goes on."""
    whole = torch.nn.ModuleDict({"head": head, "lora": torch.nn.Linear(2, 2)})
    lora = {name: value for name, value in whole.state_dict().items() if name.startswith("lora.")}
    whole.load_state_dict(lora, strict=False)
    assert head.scorer is not None


def test_weights_from_before_scores(head):
    old = {name: value for name, value in head.state_dict().items() if not name.startswith("scorer.")}
    other = RegionHead(RegionConfig(), HIDDEN)
    other.load_state_dict(old)
    e_ND = torch.randn(2, HIDDEN)
    outputs = other(e_ND)
    assert torch.equal(outputs["boxes_xyxy"], head(e_ND)["boxes_xyxy"])
    assert other.score(outputs) is None
    assert set(other.loss(outputs, {"boxes_xyxy": TRUE}, 2)) == {"loss_region_l1", "loss_region_giou"}
    other.load_state_dict(other.state_dict())


def test_encode(head):
    embeddings = head.encode({"boxes_xyxy": TRUE})
    assert embeddings.shape == (2, HIDDEN)
    assert not torch.equal(embeddings[0], embeddings[1])
    assert head.encode({"boxes_xyxy": TRUE[:0]}).shape == (0, HIDDEN)


@pytest.mark.parametrize("given_box", ["fourier", "mlp"])
def test_a_given_box_can_be_read_off_its_embedding(given_box):
    """In which of 8 x 8 cells a box's centre is: waves tell it, four numbers through a narrow layer do not."""
    torch.manual_seed(0)
    head = RegionHead(RegionConfig(given_box=given_box), HIDDEN)
    reader = torch.nn.Linear(HIDDEN, 16)
    optimizer = torch.optim.Adam([*head.encoder.parameters(), *reader.parameters()], lr=2e-2)
    first = torch.rand(500, 2) * 0.7
    boxes = torch.cat((first, first + 0.05 + torch.rand(500, 2) * 0.25), -1)
    cells = ((boxes[:, :2] + boxes[:, 2:]) * 4).long()  # [N, 2], 0 to 7
    for _ in range(300):
        logits = reader(head.encode({"boxes_xyxy": boxes})).view(-1, 2, 8)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), cells.flatten()).backward()
        optimizer.step()
    share = float((logits.argmax(-1) == cells).float().mean())
    assert share > 0.9 if given_box == "fourier" else share > 0.6


def test_fourier_features_by_hand():
    found = fourier_features(torch.tensor([[0.0, 0.5, 1.0, 0.75]]))
    assert found.shape == (1, NUM_FEATURES)
    torch.testing.assert_close(found[0, :6], torch.tensor([-1.0, 0.0, 1.0, 0.5, 0.0, 0.25]))
    waves = [math.sin(math.pi / 2 * 2**octave * 0.5) for octave in range(6)]
    torch.testing.assert_close(found[0, 6 + 3 * 6 : 6 + 4 * 6], torch.tensor(waves), atol=1e-5, rtol=0)


def test_unknown_loss():
    with pytest.raises(tpo.TPOError, match="RegionConfig: loss: is 'l1'; expected 'l1_giou' or 'mse'"):
        RegionConfig(loss="l1")


def test_registered_without_torch():
    code = "import sys, tpo_head_region, tpo_head_region.config; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


# -- records ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({}, "boxes is None; expected a list of at least one box"),
        ({"boxes": []}, r"boxes is \[\]; expected a list of at least one box"),
        ({"boxes": [0.1, 0.1, 0.2, 0.2]}, r"boxes\[0\] is 0.1; expected four numbers"),
        ({"boxes": [[0.1, 0.1, 0.2]]}, r"boxes\[0\] is \[0.1, 0.1, 0.2\]; expected four numbers"),
        ({"boxes": [BOX["boxes"][0], [0.1, 0.1, 1.2, 0.2]]}, r"boxes\[1\]: x2 is 1.2; expected a number from 0 to 1"),
        ({"boxes": [[-0.1, 0.1, 0.2, 0.2]]}, r"boxes\[0\]: x1 is -0.1; .*divide pixels"),
        ({"boxes": [[0.1, float("nan"), 0.2, 0.2]]}, r"boxes\[0\]: y1 is nan"),
        ({"boxes": [[0.1, "0.1", 0.2, 0.2]]}, r"boxes\[0\]: y1 is '0.1'"),
        ({"boxes": [[0.1, 0.1, True, 0.2]]}, r"boxes\[0\]: x2 is True"),
        ({"boxes": [[0.3, 0.1, 0.2, 0.2]]}, r"boxes\[0\]: x1 is 0.3 and x2 is 0.2; expected x1 < x2"),
        ({"boxes": [[0.1, 0.2, 0.2, 0.2]]}, r"boxes\[0\]: y1 is 0.2 and y2 is 0.2; expected y1 < y2"),
        ({**BOX, "time": -1}, "time is -1; expected seconds"),
        ({**BOX, "time": "1s"}, "time is '1s'; expected seconds"),
    ],
)
def test_tasks_that_cannot_be_used(head, task, message):
    with pytest.raises(ValueError, match=message):
        head.check_task(task)


@pytest.mark.parametrize("task", [BOX, {"boxes": [[0, 0, 1, 1]]}, {"boxes": [[0, 0, 1, 1], [0.1, 0.1, 0.2, 0.2]]}])
def test_tasks_that_can(head, task):
    head.check_task(task)
    assert head.num_tokens(task) == len(task["boxes"])


def test_collate_keeps_the_order_of_tasks_and_boxes(head):
    tasks = [{"boxes": [[0, 0, 0.1, 0.1], [0, 0, 0.2, 0.2]]}, {"boxes": [[0, 0, 0.3, 0.3]], "time": 1.0}]
    boxes = head.collate_targets(tasks)["boxes_xyxy"]
    torch.testing.assert_close(boxes[:, 2], torch.tensor([0.1, 0.2, 0.3]))
    assert boxes.dtype == torch.float32
    assert head.count_targets({"boxes_xyxy": boxes}) == 3
    torch.testing.assert_close(head.collate_inputs([], tasks[1:])["boxes_xyxy"], boxes[2:])


def test_collate_of_nothing(head):
    assert head.collate_targets([])["boxes_xyxy"].shape == (0, 4)
    assert head.collate_inputs([BOX], [])["boxes_xyxy"].shape == (0, 4)


# -- results ---------------------------------------------------------------------------------------------------------


def test_postprocess_bounds_boxes(head):
    outputs = {"boxes_xyxy": torch.tensor([[-0.5, 0.2, 1.5, 0.6], [0.6, 0.2, 0.4, 0.8]])}
    torch.testing.assert_close(head.postprocess(outputs), torch.tensor([[0, 0.2, 1, 0.6], [0.6, 0.2, 0.6, 0.8]]))


def test_metrics_over_two_batches(head):
    metrics = head.metrics()
    assert metrics.compute() == {}
    metrics.update({"boxes_xyxy": PREDICTED}, {"boxes_xyxy": TRUE})  # IoU 0.08 / 0.18 and 1
    metrics.update({"boxes_xyxy": torch.tensor([[0.5, 0.2, 0.1, 0.6]])}, {"boxes_xyxy": TRUE[:1]})  # inverted: 0
    metrics.update({"boxes_xyxy": TRUE[:0]}, {"boxes_xyxy": TRUE[:0]})
    assert metrics.compute() == pytest.approx({"acc@0.5": 1 / 3, "mean_iou": (0.08 / 0.18 + 1) / 3}, rel=1e-5)


def test_a_missed_box_has_an_overlap_of_nothing(head):
    metrics = head.metrics()
    assert metrics.quality() is None
    metrics.update({"boxes_xyxy": TRUE[:1], "quality": torch.tensor([3.0])}, {"boxes_xyxy": TRUE[:1]})
    assert metrics.quality() == 1.0
    assert metrics.missed({"boxes_xyxy": TRUE[:1]})
    found = metrics.compute()
    assert (found["acc@0.5"], found["mean_iou"]) == (0.5, 0.5)
    assert found["ap"] == pytest.approx(51 / 101)  # the precision is 1 up to a recall of a half
    nothing = head.metrics()
    assert nothing.missed({"boxes_xyxy": TRUE})
    assert nothing.compute() == {"acc@0.5": 0.0, "mean_iou": 0.0}


def test_acc_counts_an_iou_of_exactly_one_half(head):
    metrics = head.metrics()
    metrics.update({"boxes_xyxy": torch.tensor([[0, 0, 0.5, 1.0]])}, {"boxes_xyxy": torch.tensor([[0, 0, 1.0, 1.0]])})
    assert metrics.compute() == {"acc@0.5": 1.0, "mean_iou": 0.5}


def test_pixels_and_json(head):
    value = torch.tensor([0.25, 0.5, 0.5, 1.0])
    pixels = head.to_units(value, width=640, height=480, duration=None)
    assert head.to_json(pixels) == [160.0, 240.0, 320.0, 480.0]
    assert json.loads(json.dumps(head.to_json(value))) == [0.25, 0.5, 0.5, 1.0]
    with pytest.raises(tpo.TPOError, match="needs width and height; got width=None"):
        head.to_units(value, width=None, height=480, duration=1.0)


@pytest.mark.parametrize("size", [(48, 48), (640, 480)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_drawing(head, size, mode):
    image = Image.new(mode, size, "white")
    before = image.tobytes()
    drawn = head.draw(image, torch.tensor([0.25, 0.25, 0.5, 0.5]), [0.5, 0.5, 1.0, 1.0])
    assert image.tobytes() == before
    assert drawn.size == size
    assert drawn.mode == "RGB"
    width, height = size
    edge = {
        "predicted": drawn.getpixel((round(0.25 * (width - 1)), round(0.4 * (height - 1)))),
        "true": drawn.getpixel((width - 1, round(0.8 * (height - 1)))),
        "inside": drawn.getpixel((round(0.4 * width), round(0.4 * height))),
    }
    assert edge == {"predicted": (255, 140, 0), "true": (30, 144, 255), "inside": (255, 255, 255)}


def test_drawing_wider_on_larger_images(head):
    def orange(size: int) -> int:
        drawn = head.draw(Image.new("RGB", (size, size)), [0.2, 0.2, 0.8, 0.8])
        row = [drawn.getpixel((x, size // 2)) for x in range(size)]
        return row.count((255, 140, 0))

    assert orange(48) == 2
    assert orange(1200) == 20


def test_the_best_constant_box_is_one_of_the_true_ones(head):
    metrics = head.metrics()
    assert metrics.constant() == {}
    three = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.1, 0.0, 0.5, 0.4], [0.6, 0.6, 1.0, 1.0]])
    metrics.update({"boxes_xyxy": torch.zeros(2, 4)}, {"boxes_xyxy": three[:2]})
    metrics.missed({"boxes_xyxy": three[2:]})
    assert metrics.constant() == pytest.approx({"acc@0.5": 2 / 3, "mean_iou": (1 + 0.3 / 0.5) / 3})
