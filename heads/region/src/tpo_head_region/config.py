"""The region head's configuration. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import tpo_plugin as tpo

Loss = Literal["l1_giou", "mse"]


@dataclass(kw_only=True)
class RegionConfig(tpo.HeadConfig):
    loss: Loss = "l1_giou"
    """"l1_giou": 2 x L1 + (1 - GIoU) / 5, as the authors' code; "mse": the mean squared error, as the paper."""

    def __post_init__(self) -> None:
        if self.loss not in get_args(Loss):
            raise tpo.TPOError(f"region: loss is {self.loss!r}; expected one of {', '.join(map(repr, get_args(Loss)))}")
