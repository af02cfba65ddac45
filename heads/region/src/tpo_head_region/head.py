"""One box per task token. N = task tokens in the batch, M = boxes that users give in it, D = host's hidden size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tpo_plugin as tpo
from tpo_head_region.boxes import NUM_FEATURES, fourier_features, giou_loss, iou
from tpo_head_region.codec import RegionCodec
from tpo_head_region.config import RegionConfig
from tpo_plugin.scores import overlap_metrics

if TYPE_CHECKING:
    from PIL.Image import Image

CENTRED_BOX = (0.25, 0.25, 0.75, 0.75)


class RegionMLP(nn.Module):
    """Two layers with a ReLU between them and a linear output, as in the paper and in the authors' code."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = tpo.Linear(in_features, hidden_features)
        self.fc2 = tpo.Linear(hidden_features, out_features)

    def forward(self, input: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(input)))


class RegionHead(RegionCodec, tpo.TaskHead):
    """From a task embedding to a box, and from a box that the user gives to an embedding in the prompt."""

    def __init__(self, config: RegionConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.decoder = RegionMLP(hidden_size, hidden_size // 2, 4)
        numbers = 4 if config.given_box == "mlp" else NUM_FEATURES
        self.encoder = RegionMLP(numbers, hidden_size // 2, hidden_size)
        self.scorer: RegionMLP | None = RegionMLP(hidden_size + 4, hidden_size // 2, 1)
        with torch.no_grad():  # start near the centred box: an inverted box has an L1 loss but no overlap to learn from
            self.decoder.fc2.weight.mul_(0.1)
            self.decoder.fc2.bias.copy_(torch.tensor(CENTRED_BOX))

    def forward(self, e_ND: Tensor) -> dict[str, Tensor]:
        """`boxes_xyxy` [N, 4], normalised to the image and not bounded (`postprocess` bounds it).

        `quality` [N]: logits of the IoU that the box is expected to have. They are read off without a gradient into
        embedding and box, which therefore train as without a score.
        """
        boxes = self.decoder(e_ND)
        if self.scorer is None:
            return {"boxes_xyxy": boxes}
        return {"boxes_xyxy": boxes, "quality": self.scorer(torch.cat((e_ND, boxes), -1).detach())[:, 0]}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own = [key for key in state_dict if key.startswith(prefix)]  # none where an adapter's weights are loaded alone
        if own and not any(key.startswith(f"{prefix}scorer.") for key in own):
            self.scorer = None  # saved before the head had scores
        super()._load_from_state_dict(state_dict, prefix, *args)

    def encode(self, inputs: dict[str, Any]) -> Tensor:
        """From `boxes_xyxy` [M, 4] to embeddings [M, D]."""
        boxes = inputs["boxes_xyxy"]
        return self.encoder(boxes if self.config.given_box == "mlp" else fourier_features(boxes))

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Any], num_targets: Tensor | int) -> dict[str, Tensor]:
        """`targets`: `boxes_xyxy` [N, 4] with x1 < x2 and y1 < y2. Each loss is weighted; their sum is the head's.

        "l1_giou": per box 2 x (mean of |difference| over its four numbers) + (1 - GIoU) / 5. "mse": per box the mean of
        the squared differences. With `quality` also the divergence of each score from the IoU that its box reached, as
        probabilities, which is least for the IoU to be expected. It has a gradient and the value 0, so that the head's
        loss is the published one.
        """
        predicted, true = outputs["boxes_xyxy"], targets["boxes_xyxy"]
        if self.config.loss == "mse":
            losses = {"loss_region_mse": F.mse_loss(predicted, true, reduction="sum") / 4}
        else:
            losses = {
                "loss_region_l1": 2 * F.l1_loss(predicted, true, reduction="sum") / 4,
                "loss_region_giou": giou_loss(predicted, true).sum() / 5,
            }
        if "quality" in outputs:
            reached = iou(self.postprocess(outputs), true).detach()
            divergence = F.binary_cross_entropy_with_logits(outputs["quality"], reached, reduction="sum")
            losses["loss_region_quality"] = divergence - divergence.detach()
        return {name: loss / num_targets for name, loss in losses.items()}

    def postprocess(self, outputs: dict[str, Tensor]) -> Tensor:
        """[N, 4] inside the image; an inverted side gets length 0 at its first corner."""
        first, second = outputs["boxes_xyxy"].clamp(0, 1).split(2, dim=-1)
        return torch.cat((first, torch.maximum(first, second)), -1)

    def score(self, outputs: dict[str, Tensor]) -> Tensor | None:
        """The IoU that each box is expected to have, [N] in 0 to 1; None of weights saved before there were scores."""
        return outputs["quality"].sigmoid() if "quality" in outputs else None

    def to_units(self, value: Any, *, width: int | None, height: int | None, duration: float | None) -> Tensor:
        """The box [4] in pixels of a `width` x `height` image."""
        return in_pixels(value, width, height)

    def metrics(self) -> tpo.HeadMetrics:
        return RegionMetrics(self)

    def benchmarks(self) -> dict[str, tpo.Benchmark]:
        from tpo_head_region.benchmarks import benchmarks

        return benchmarks(empty_sets=False)

    def draw(self, image: Image, value: Any, target: Any = None) -> Image:
        """A copy of `image`, RGB, with the predicted box in orange over the true one in blue."""
        from tpo_head_region.drawing import PREDICTED, TRUE, draw_boxes

        boxes = [(box, colour) for box, colour in ((target, TRUE), (value, PREDICTED)) if box is not None]
        return draw_boxes(image, boxes)


def in_pixels(boxes_xyxy: Any, width: int | None, height: int | None) -> Tensor:
    """Boxes [..., 4] in pixels of a `width` x `height` image. Raises `TPOError` where its size is not known."""
    if width is None or height is None:
        raise tpo.TPOError(f"region: a box in pixels needs width and height; got width={width}, height={height}")
    boxes = torch.as_tensor(boxes_xyxy, dtype=torch.float32)
    return boxes * boxes.new_tensor([width, height, width, height])


class RegionMetrics(tpo.HeadMetrics):
    """`acc@0.5`, the share of boxes with an IoU of at least 0.5, and `mean_iou`; each box as `postprocess` gives it.

    Of boxes with scores also `ap@0.5`, `ap` (over IoUs of 0.5 to 0.95) and `calibration_error` of the score as an
    expected IoU; see `tpo_plugin.scores`. Each box counts for its own question. A missed target has an IoU of 0, and
    for the precision nothing was found.
    """

    def __init__(self, head: tpo.TaskHead) -> None:
        super().__init__(head)
        self._overlaps: list[Tensor] = []
        self._truth: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._num_missed = 0

    @torch.no_grad()
    def update(self, outputs: dict[str, Tensor], targets: dict[str, Any]) -> None:
        self._overlaps.append(iou(self.head.postprocess(outputs), targets["boxes_xyxy"]).cpu())
        self._truth.append(targets["boxes_xyxy"].cpu())
        scores = self.head.score(outputs)
        if scores is not None:
            self._scores.append(scores.cpu())

    def missed(self, targets: dict[str, Any]) -> bool:
        self._num_missed += self.head.count_targets(targets)
        self._truth.append(targets["boxes_xyxy"].cpu())
        return True

    def quality(self) -> float | None:
        return self.compute().get("mean_iou")

    def compute(self) -> dict[str, float]:
        given = torch.cat([torch.zeros(0), *self._overlaps])
        overlaps = torch.cat([given, torch.zeros(self._num_missed)])
        if not len(overlaps):
            return {}
        found = {"acc@0.5": float((overlaps >= 0.5).double().mean()), "mean_iou": float(overlaps.double().mean())}
        scores = torch.cat([torch.zeros(0), *self._scores])
        if not len(scores) or len(scores) != len(given):
            return found
        return found | overlap_metrics(scores, given, len(overlaps))

    def constant(self) -> dict[str, float]:
        """Of the true boxes, at most 256 of them tried, the one with the greatest mean IoU with all."""
        truth = torch.cat([torch.zeros(0, 4), *self._truth])
        if not len(truth):
            return {}
        tried = truth[:: -(-len(truth) // 256)]
        overlaps = max((iou(box.expand_as(truth), truth) for box in tried), key=lambda values: float(values.mean()))
        return {"acc@0.5": float((overlaps >= 0.5).double().mean()), "mean_iou": float(overlaps.double().mean())}
