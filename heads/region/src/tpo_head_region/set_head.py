"""A set of boxes per task token. N = task tokens in the batch, D = host's hidden size, Q = queries, W = their width,
M_n = boxes of a set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

import tpo_plugin as tpo
from tpo_head_region.boxes import giou_loss
from tpo_head_region.codec import RegionSetCodec
from tpo_head_region.config import RegionSetConfig
from tpo_head_region.head import RegionMLP, in_pixels
from tpo_head_region.set_metrics import RegionSetMetrics

if TYPE_CHECKING:
    from PIL.Image import Image

L1, GIOU, OBJECT = 5.0, 2.0, 1.0
"""Weights of the losses, and of the matcher's costs, as in DETR (Carion et al., ECCV 2020)."""
KEPT = 0.5
"""Probability from which a query's box is in the set."""
NUM_HEADS = 4


class SetLayer(nn.Module):
    """Attention of the queries to each other, and a feed-forward of twice the width; norms first, without weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.out = tpo.Linear(width, 3 * width), tpo.Linear(width, width)
        self.feed_forward = RegionMLP(width, 2 * width, width)

    def forward(self, x_NQW: Tensor) -> Tensor:
        split = self.qkv(self.norm(x_NQW)).unflatten(-1, (3, NUM_HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*split.unbind(0))
        x_NQW = x_NQW + self.out(attended.transpose(1, 2).flatten(-2))
        return x_NQW + self.feed_forward(self.norm(x_NQW))


class SetDecoder(nn.Module):
    """From a task embedding to five numbers of each query.

    Each query has its own linear view of the embedding, whose bias is the query that is learned. They attend to each
    other, for two queries that do not know of each other give the same box.
    """

    def __init__(self, config: RegionSetConfig, hidden_size: int) -> None:
        super().__init__()
        self.num_queries = config.max_boxes
        self.views = tpo.Linear(hidden_size, config.max_boxes * config.width)
        self.layers = nn.Sequential(*(SetLayer(config.width) for _ in range(config.layers)))
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.out = RegionMLP(config.width, config.width, 5)

    def forward(self, e_ND: Tensor) -> Tensor:
        """[N, Q, 5], unbounded."""
        x_NQW = self.views(e_ND).unflatten(-1, (self.num_queries, -1))
        return self.out(self.norm(self.layers(x_NQW)))


class RegionSetHead(RegionSetCodec, tpo.TaskHead):
    """From a task embedding to up to `max_boxes` boxes, as DETR decodes and trains them."""

    def __init__(self, config: RegionSetConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.decoder = SetDecoder(config, hidden_size)

    def forward(self, e_ND: Tensor) -> dict[str, Tensor]:
        """`boxes_xyxy` [N, Q, 4] with x1 < x2 and y1 < y2, normalised to the image and not bounded by it, and `object`
        [N, Q]: logits of whether a query's box is in the set."""
        numbers = self.decoder(e_ND)
        centre, side = numbers[..., :4].sigmoid().split(2, dim=-1)
        return {"boxes_xyxy": torch.cat((centre - side / 2, centre + side / 2), -1), "object": numbers[..., 4]}

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Any], num_targets: Tensor | int) -> dict[str, Tensor]:
        """`targets`: `boxes_xyxy`, N tensors [M_n, 4] with x1 < x2 and y1 < y2, M_n from 0 to Q.

        Each set's boxes are matched with as many queries, for the least cost (`match`). Of a matched query 5 x L1, the
        sum over its box's four numbers, and 2 x (1 - GIoU); of each query the cross entropy of whether it is matched.
        All are means over the Q queries of a set. Other than in DETR, a query without a box weighs as much as one with:
        of Q queries many have one, and the probability is what `KEPT` takes it for. Raises `TPOError` for a set of more
        than Q boxes.
        """
        boxes, truth = outputs["boxes_xyxy"], targets["boxes_xyxy"]
        rows, queries = match(boxes, outputs["object"], truth)
        predicted, true = boxes[rows, queries], torch.cat([boxes.new_zeros(0, 4), *truth])
        matched = torch.zeros_like(outputs["object"]).index_put((rows, queries), boxes.new_ones(()))
        losses = {
            "loss_region_set_l1": L1 * F.l1_loss(predicted, true, reduction="sum"),
            "loss_region_set_giou": GIOU * giou_loss(predicted, true).sum(),
            "loss_region_set_object": OBJECT
            * F.binary_cross_entropy_with_logits(outputs["object"], matched, reduction="sum"),
        }
        return {name: loss / (boxes.shape[1] * num_targets) for name, loss in losses.items()}

    def postprocess(self, outputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """For each task token `boxes_xyxy` [P, 4] inside the image and their `scores` [P], from `KEPT` on, the best
        first; P is 0 where nothing is there."""
        scores, order = outputs["object"].sigmoid().sort(dim=-1, descending=True, stable=True)
        boxes = outputs["boxes_xyxy"].clamp(0, 1).gather(1, order[..., None].expand(-1, -1, 4))
        counts = (scores >= KEPT).sum(-1).tolist()
        return [
            {"boxes_xyxy": b[:count], "scores": s[:count]} for b, s, count in zip(boxes, scores, counts, strict=True)
        ]

    def score(self, outputs: dict[str, Tensor]) -> Tensor:
        """The probability, [N], that no box is missing and none too many, were the queries' independent."""
        return F.logsigmoid(outputs["object"].abs()).sum(-1).exp()

    def to_units(self, value: Any, *, width: int | None, height: int | None, duration: float | None) -> dict[str, Any]:
        """The value with its boxes in pixels of a `width` x `height` image."""
        return {**value, "boxes_xyxy": in_pixels(value["boxes_xyxy"], width, height)}

    def metrics(self) -> tpo.HeadMetrics:
        return RegionSetMetrics(self)

    def benchmarks(self) -> dict[str, tpo.Benchmark]:
        from tpo_head_region.benchmarks import benchmarks

        return benchmarks(empty_sets=True)

    def draw(self, image: Image, value: Any, target: Any = None) -> Image:
        """A copy of `image`, RGB, with the predicted boxes in orange over the true ones in blue."""
        from tpo_head_region.drawing import PREDICTED, TRUE, draw_boxes

        sets = [(boxes["boxes_xyxy"], colour) for boxes, colour in ((target, TRUE), (value, PREDICTED)) if boxes]
        return draw_boxes(image, [(box, colour) for boxes, colour in sets for box in boxes])


@torch.no_grad()
def match(boxes_NQ4: Tensor, object_NQ: Tensor, truth: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Row and query of each true box, in their order, int64 [sum of M_n]: those whose costs sum to the least in each
    row (Hungarian algorithm). Cost of a pair: 5 x L1 - 2 x GIoU - probability.

    Raises `TPOError` for a row of more boxes than queries.
    """
    counts, num_queries = [len(boxes) for boxes in truth], boxes_NQ4.shape[1]
    if max(counts, default=0) > num_queries:
        raise tpo.TPOError(
            f"region_set: a task has {max(counts)} boxes; expected at most max_boxes={num_queries}, set it higher"
        )
    device = boxes_NQ4.device
    rows = torch.tensor([row for row, count in enumerate(counts) for _ in range(count)], dtype=torch.int64).to(device)
    true, boxes = torch.cat([boxes_NQ4.new_zeros(0, 4), *truth])[:, None], boxes_NQ4[rows]
    distance = (boxes - true).abs().sum(-1)  # [sum of M_n, Q]
    cost = L1 * distance + GIOU * giou_loss(boxes, true) - OBJECT * object_NQ[rows].sigmoid()
    # Of a model that diverged the loss says so.
    blocks = np.split(cost.nan_to_num().double().cpu().numpy(), np.cumsum(counts)[:-1]) if len(rows) else []
    columns = [linear_sum_assignment(block)[1] for block in blocks]
    queries = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *columns]))
    return rows, queries.to(device)
