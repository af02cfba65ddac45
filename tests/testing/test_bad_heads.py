"""For each check of the conformance kit there is a head that is built to fail it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from good_head import STANDARD_TESTS, GoodConfig, GoodHead, run
from PIL import ImageDraw
from torch import nn
from torch.nn import functional as F

import tpo_plugin as tpo


def head(**methods: Any) -> type:
    """A good head with other methods."""
    return type("Bad", (GoodHead,), methods)


def points(make: Callable[[torch.Tensor, torch.Tensor], Any]) -> type:
    """A head whose forward gives `make(points [N, 2], e_ND)`."""
    return head(forward=lambda self, e_ND: make(GoodHead.forward(self, e_ND)["points_xy"], e_ND))


def loss(make: Callable[..., Any]) -> type:
    """A head whose loss is `make(predicted, true, num_targets)`."""
    return head(loss=lambda self, out, targets, num: make(out["points_xy"], targets["points_xy"], num))


def summed(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    return (predicted - true).abs().sum()


def unused_parameter(self: Any, config: GoodConfig, hidden_size: int) -> None:
    GoodHead.__init__(self, config, hidden_size)
    self.unused = tpo.Linear(hidden_size, 2)


def thawing(self: Any, e_ND: torch.Tensor) -> dict[str, torch.Tensor]:
    self.encoder.requires_grad_(True)
    return {"points_xy": self.proj(e_ND) + self.encoder(e_ND)}


def with_frozen_encoder(self: Any, config: GoodConfig, hidden_size: int) -> None:
    GoodHead.__init__(self, config, hidden_size)
    self.encoder = tpo.Linear(hidden_size, 2).requires_grad_(False)


def with_hidden_state(self: Any, config: GoodConfig, hidden_size: int) -> None:
    GoodHead.__init__(self, config, hidden_size)
    self.offset = float(torch.rand(()))


def keeping(self: Any, e_ND: torch.Tensor) -> dict[str, torch.Tensor]:
    self.kept = e_ND
    time.sleep(0.05)  # in which others come in
    return GoodHead.forward(self, self.kept)


def counting(self: Any, config: GoodConfig, hidden_size: int) -> None:
    GoodHead.__init__(self, config, hidden_size)
    type(self).built = getattr(type(self), "built", 0) + 1


def _draw_half(image: Any, target: Any) -> Any:
    assert target is None, "draws no target"
    return image.copy()


def draw_in_place(self: Any, image: Any, value: Any, target: Any = None) -> Any:
    ImageDraw.Draw(image).point((1, 1), "black")
    return image.copy()


BAD = {
    "no dict": ("outputs", points(lambda p, e: p), "forward gives a Tensor; expected a dict"),
    "empty dict": ("outputs", points(lambda p, e: {}), "forward gives an empty dict"),
    "no tensor": ("outputs", points(lambda p, e: {"points_xy": [p]}), "'points_xy' is a list; expected a tensor"),
    "one row for all": (
        "outputs",
        points(lambda p, e: {"points_xy": p.sum(0, keepdim=True)}),
        r"of shape \(1, 2\) for 0 task tokens; expected \(0, ...\)",
    ),
    "half": ("outputs", points(lambda p, e: {"points_xy": p.half()}), "is torch.float16; expected float32"),
    "not finite": ("outputs", points(lambda p, e: {"points_xy": p / 0}), "is not finite for 1 task tokens"),
    "one value for all": ("outputs", head(postprocess=lambda self, out: [0]), "postprocess gives 1 values for 0"),
    "score shape": (
        "outputs",
        head(score=lambda self, out: out["points_xy"]),
        r"score is of shape \(0, 2\); expected \(0,\)",
    ),
    "score range": ("outputs", head(score=lambda self, out: out["points_xy"][:, 0] + 1), "expected 0 to 1"),
    "count": ("outputs", head(count_targets=lambda self, targets: 1), r"count_targets gives 1 for make_targets\(0\)"),
    "bfloat16": (
        "outputs_on_a_bfloat16_host",
        points(lambda p, e: {"points_xy": p.bfloat16() if len(e) and torch.equal(e, e.bfloat16().float()) else p}),
        "is torch.bfloat16; expected float32",
    ),
    "metrics": (
        "evaluation",
        head(loss=lambda self, out, targets, num: {"loss_a": (out["points_xy"].sum() / 0)}),
        "metrics are not finite",
    ),
    "no metrics": ("evaluation", head(loss=lambda self, *rest: {}), "is empty after targets were added"),
    "draws in place": ("evaluation", head(draw=draw_in_place), "draw changes the picture"),
    "draws nothing": ("evaluation", head(draw=lambda self, image, *rest: image), "gives back the picture"),
    "draws small": (
        "evaluation",
        head(draw=lambda self, image, *rest: image.resize((8, 8))),
        r"picture of size \(8, 8\) for one of \(64, 48\)",
    ),
    "counts otherwise": (
        "records",
        head(num_tokens=lambda self, task: 2),
        "num_tokens gives 2 for a task, and count_targets 1 for its targets",
    ),
    "draws no target": (
        "records",
        head(draw=lambda self, image, value, target=None: _draw_half(image, target)),
        "draws no target",
    ),
    "no loss": ("losses", loss(lambda p, t, n: {}), "loss gives no named loss"),
    "loss name": ("losses", loss(lambda p, t, n: {"l1": summed(p, t) / n}), "a loss is named 'l1'; expected loss_"),
    "loss of many": (
        "losses",
        loss(lambda p, t, n: {"loss_a": (p - t).abs()}),
        r"of shape \(3, 2\); expected a scalar",
    ),
    "loss not finite": ("losses", loss(lambda p, t, n: {"loss_a": (p - t).abs().sum() / 0}), "loss_a is inf"),
    "loss detached": ("losses", loss(lambda p, t, n: {"loss_a": summed(p.detach(), t) / n}), "is not connected to the"),
    "loss mean": (
        "losses",
        loss(lambda p, t, n: {"loss_a": F.l1_loss(p, t)}),
        "with twice the num_targets; expected h",
    ),
    "loss of its own count": ("losses", loss(lambda p, t, n: {"loss_a": summed(p, t) / len(t)}), "expected half"),
    "loss mean / num": (
        "losses",
        loss(lambda p, t, n: {"loss_a": F.l1_loss(p, t) / n}),
        "same targets twice with twice the num_targets; expected the same",
    ),
    "loss of nothing": (
        "losses",
        loss(lambda p, t, n: {"loss_a": summed(p, t) / n * (summed(p, t) / summed(p, t)).detach()}),
        "loss_a is nan without targets; expected 0",
    ),
    "loss of nothing detached": (
        "losses",
        loss(lambda p, t, n: {"loss_a": summed(p, t) / n if len(t) else torch.zeros(())}),
        "not connected to the head without targets",
    ),
    "unused parameter": ("gradients", head(__init__=unused_parameter), "no gradient reaches .*unused.weight"),
    "cut off": (
        "gradients",
        head(forward=lambda self, e: GoodHead.forward(self, e.detach())),
        "no gradient reaches .*the task token|the task token's gradient is zero",
    ),
    "gradient not finite": (
        "gradients",
        points(lambda p, e: {"points_xy": p + (p - p.detach()).abs().sqrt()}),
        "the gradient is not finite at",
    ),
    "zero gradient": (
        "gradients",
        points(lambda p, e: {"points_xy": 0 * p + e[:, :2]}),
        "every gradient of the head is",
    ),
    "thaws": (
        "gradients",
        head(__init__=with_frozen_encoder, forward=thawing),
        "frozen weights got gradients: .*encoder",
    ),
    "early return": (
        "gradients_without_task_tokens",
        points(lambda p, e: {"points_xy": p if len(e) else torch.zeros(0, 2)}),
        "the gradient of proj.weight is missing for an empty batch",
    ),
    "hidden state": (
        "save_and_load",
        head(
            __init__=with_hidden_state,
            forward=lambda self, e: {"points_xy": GoodHead.forward(self, e)["points_xy"] + self.offset},
        ),
        "output 'points_xy' differs after saving and loading",
    ),
    "counts heads": (
        "beside_another_head",
        head(
            __init__=counting,
            forward=lambda self, e: {"points_xy": GoodHead.forward(self, e)["points_xy"] * type(self).built},
        ),
        r"output 'points_xy' differs with heads=\['under_test', 'kit_neighbour'\] and 0 task tokens",
    ),
    "keeps what it was given": ("in_threads", head(forward=keeping), "output 'points_xy' differs among threads"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_head_fails(kit, case, tmp_path):
    name, bad, message = BAD[case]
    with pytest.raises(AssertionError, match=message):
        run(kit(bad), f"test_{name}", tmp_path)


def test_a_head_that_is_no_task_head_fails(kit):
    with pytest.raises(AssertionError, match=r"Stray must derive from tpo_plugin\.TaskHead"):
        kit(
            type("Stray", (nn.Module,), {"__init__": lambda self, config, size: nn.Module.__init__(self)})
        ).test_outputs()


def test_a_value_that_json_cannot_hold_fails(kit):
    bad = head(to_json=lambda self, value: math.nan)
    with pytest.raises(ValueError, match="not JSON compliant"):
        kit(bad).test_outputs()
    assert json.dumps(math.nan) == "NaN"  # and without allow_nan=False it would pass


def test_every_check_has_a_head_that_fails_it():
    here = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    covered = {f"test_{name}" for name, _, _ in BAD.values()}
    for name in STANDARD_TESTS:
        assert name in covered or f".{name}()" in here, f"no head is built to fail {name}"
