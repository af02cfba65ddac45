"""Attention and what training leaves out at random."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from tpo_head_temporal.dropout import Dropout, DropPath, DroppedPReLU
from tpo_head_temporal.layers import Attention


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_the_share_that_it_says(p):
    torch.manual_seed(0)
    x = torch.ones(1001, 203, requires_grad=True)
    dropped = Dropout(p).train()(x)
    kept = dropped > 0
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=4e-3)
    torch.testing.assert_close(dropped[kept], torch.full((int(kept.sum()),), 1 / (1 - p)))
    assert kept.float().mean(0).std() < 0.02  # no column is favoured
    dropped.sum().backward()
    assert torch.equal(x.grad > 0, kept)
    assert Dropout(p).eval()(x) is x


def test_attention_is_the_same_by_either_way():
    """Without dropout torch's kernel computes it, with dropout on the CPU we do: with next to none they agree."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 16).unbind(0)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()[:, None, None]
    kernel, ours = Attention(4, 0.0)(q, k, v, mask), Attention(4, 1e-9).train()(q, k, v, mask)
    torch.testing.assert_close(kernel, ours)


def test_prelu_with_dropout_has_the_gradients_of_the_two():
    torch.manual_seed(0)
    layer = DroppedPReLU(0.25).train()
    x = torch.randn(400, 300, requires_grad=True)
    dropped = layer(x)
    kept = (dropped != 0).float()
    assert kept.mean().item() == pytest.approx(0.75, abs=4e-3)
    expected = F.prelu(x, layer.weight) * kept / 0.75
    torch.testing.assert_close(dropped, expected)
    weight = torch.randn_like(x)
    inputs = (x, layer.weight)
    for found, wanted in zip(
        torch.autograd.grad(dropped, inputs, weight), torch.autograd.grad(expected, inputs, weight), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(layer.eval()(x), F.prelu(x, layer.weight))


def test_a_dropped_sample_has_no_branch_and_costs_nothing():
    torch.manual_seed(0)
    seen: list[int] = []

    def branch(value: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        seen.append(len(value))
        return value * factor

    path = DropPath(0.25).train()
    x, value = torch.zeros(4000, 3), torch.ones(4000, 3, requires_grad=True)
    factor = torch.arange(4000.0)[:, None] + 1
    kept = path(x, branch, value, factor)
    rows = kept[:, 0] != 0
    assert seen == [int(rows.sum())]
    assert rows.float().mean().item() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(kept[rows], (factor / 0.75).expand(-1, 3)[rows])
    kept.sum().backward()
    assert torch.equal(value.grad[:, 0] != 0, rows)
    torch.testing.assert_close(path.eval()(x, branch, value, factor), factor.expand(-1, 3))
    path.p, seen[:] = 1 - 1e-9, []
    assert not path.train()(x[:5], branch, value[:5], factor[:5]).any()  # nobody's is kept
    assert seen == [0]
