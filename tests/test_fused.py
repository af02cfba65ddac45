"""Log-probabilities that TRL computes of the output embedding's weights, against those of the host's logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tpo_plugin as tpo
from tpo_plugin.testing import tiny_host

utils = pytest.importorskip("trl.trainer.utils")

FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1")


def fused(model: Any, temperature: float = 0.7) -> Any:
    utils.add_fused_lm_head(model, temperature=temperature, outputs=FIELDS)
    return model


@pytest.fixture(params=[64, 14], ids=["rows to spare", "rows added"])
def applied(request: Any, echo: str) -> Any:
    """A host in training whose triggers have learned."""
    model, tokenizer = tiny_host()
    if request.param != 64:
        model.resize_token_embeddings(request.param)
    tpo.apply_tpo(model, tokenizer, heads=[echo])
    with torch.no_grad():
        model.tpo.embeddings[echo].output.add_(torch.randn(32))
    return model.train()


def batch(model: Any) -> tuple[Tensor, Tensor]:
    """Two answers, one with a task; the prompt has no label."""
    trigger, task = model.tpo.token_ids["echo"]
    ids = torch.tensor([[1, 4, 5, 9, trigger, task, 2, 0], [1, 5, 4, 10, 11, trigger, task, 2]])
    labels = ids.clone()
    labels[:, :3] = -100
    labels[0, -1] = -100
    return ids, labels


def slow(model: Any, ids: Tensor, labels: Tensor, temperature: float = 0.7) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy by the whole softmax of the model's logits; 0 where nothing is chosen."""
    logprobs = (model(input_ids=ids).logits[:, :-1].float() / temperature).log_softmax(-1)
    chosen = (labels[:, 1:] != -100) & (labels[:, 1:] != model.tpo.token_ids["echo"][1])
    of_labels = logprobs.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return of_labels.where(chosen, 0.0), entropy.where(chosen, 0.0)


def test_it_is_as_the_slow_computation_and_so_are_its_gradients(applied):
    model, (ids, labels) = applied, batch(applied)
    expected = slow(model, ids, labels)
    parts = dict(model.named_parameters())
    weights = torch.linspace(-1, 1, expected[0].numel()).view_as(expected[0])

    def gradients(logprobs: Tensor, entropy: Tensor) -> list[Tensor | None]:
        loss = (weights * (logprobs + 0.3 * entropy)).sum()
        return torch.autograd.grad(loss, list(parts.values()), allow_unused=True)

    slow_ones = gradients(*expected)
    out = fused(model)(input_ids=ids, labels=labels, fused_lm_head=True)
    torch.testing.assert_close(out.log_probs, expected[0])
    torch.testing.assert_close(out.entropy, expected[1])
    for name, ours, theirs in zip(parts, gradients(out.log_probs, out.entropy), slow_ones, strict=True):
        if theirs is not None or ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5, msg=name)
    trained = dict(zip(parts, slow_ones, strict=True))["tpo.embeddings.echo.output"]
    assert trained is not None
    assert trained.abs().sum() > 0


def test_without_the_plugin_it_is_another(applied):
    """What the test above would be worth nothing without."""
    model, (ids, labels) = applied, batch(applied)
    expected = slow(model, ids, labels)[0]
    model._forward_pre_hooks.clear()
    out = fused(model)(input_ids=ids, labels=labels, fused_lm_head=True)
    assert not torch.allclose(out.log_probs, expected, atol=1e-2)


def test_nothing_stays_behind(applied):
    model, (ids, labels) = applied, batch(applied)
    head = model.get_output_embeddings()
    fused(model)(input_ids=ids, labels=labels, fused_lm_head=True)
    assert model.get_output_embeddings() is head
    with pytest.raises(IndexError):
        model(input_ids=ids + 1000, labels=labels, fused_lm_head=True)
    assert model.get_output_embeddings() is head
    assert torch.equal(labels, batch(model)[1])
    del model.forward
    tpo.remove_tpo(model)
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    out = fused(model)(input_ids=ids.clamp(max=11), labels=labels.clamp(max=11), fused_lm_head=True)
    assert out.log_probs.isfinite().all()


def test_under_lora(applied):
    """TRL calls PEFT's model, which calls the host."""
    peft = pytest.importorskip("peft")
    model, (ids, labels) = applied, batch(applied)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["q_proj"], exclude_modules=r".*\btpo\b.*", init_lora_weights=False)
    )
    expected = slow(model, ids, labels)[0]
    fused(model)
    torch.testing.assert_close(adapted(input_ids=ids, labels=labels, fused_lm_head=True).log_probs, expected)


def test_in_half_precision_it_is_finite(applied):
    model, (ids, labels) = applied.to(torch.float16), batch(applied)
    out = fused(model, temperature=0.1)(input_ids=ids, labels=labels, fused_lm_head=True)
    for name in FIELDS[:3]:
        assert out[name].isfinite().all(), name


def test_weights_in_parts_are_refused(applied):
    model, (ids, labels) = applied, batch(applied)
    model.lm_head.weight.ds_id = 0
    with pytest.raises(tpo.TPOError, match="ZeRO-3 leaves a part to each rank"):
        fused(model)(input_ids=ids, labels=labels, fused_lm_head=True)
