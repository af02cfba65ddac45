"""The region heads' configurations. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, MultipleOf

import tpo_plugin as tpo


@dataclass(kw_only=True)
class RegionConfig(tpo.HeadConfig):
    loss: Literal["l1_giou", "mse"] = "l1_giou"
    """"l1_giou": 2 x L1 + (1 - GIoU) / 5, as the authors' code; "mse": the mean squared error, as the paper."""
    given_box: Literal["mlp", "fourier"] = "mlp"
    """How a box that the user gives becomes an embedding: by an MLP from its four numbers ("mlp", as the paper), or
    from sines and cosines of its corners and centre ("fourier", as SAM's prompt encoder has them)."""


@dataclass(kw_only=True)
class RegionSetConfig(tpo.HeadConfig):
    """A set of boxes, or none, from one task token."""

    max_boxes: Annotated[int, Ge(1)] = 20
    """The most boxes of one answer, in training too: the number of queries."""
    width: Annotated[int, Ge(4), MultipleOf(4)] = 128
    """Of a query; it has four heads of attention."""
    layers: Annotated[int, Ge(0)] = 2
    """In which the queries attend to each other."""
