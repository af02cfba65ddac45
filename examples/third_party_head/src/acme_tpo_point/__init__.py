"""One point per task token.  N = task tokens in the batch, D = host hidden size."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval
from torch import nn
from torch.nn import functional as F

import tpo_plugin as tpo


@dataclass(kw_only=True)
class PointConfig(tpo.HeadConfig):
    dropout: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Probability of zeroing a hidden unit, 0 to 1."""


class PointHead(tpo.TaskHead):
    fields = ("points_xy",)  # of a task in a record

    def __init__(self, config, hidden_size):
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.fc1 = tpo.Linear(hidden_size, 2)

    def forward(self, e_ND):
        return {"points_xy": self.fc1(self.dropout(e_ND)).sigmoid()}  # [N, 2], 0 to 1 of image width, height

    def loss(self, outputs, targets, num_targets):
        diff = F.l1_loss(outputs["points_xy"], targets["points_xy"], reduction="sum")
        return {"loss_point_l1": diff / num_targets}


@tpo.hookimpl
def register_heads(register):
    register("point", head=PointHead, config=PointConfig, trigger="<point_begin>", task_token="<point>")
