"""A batch without media whose vision tower runs idle: the same parameters as with media, in the same order, at zero."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration

from tpo_plugin import apply_tpo
from tpo_plugin.errors import HostError
from tpo_plugin.host.idle import FEATURES, IdleTowers

HOSTS = [host for host in zoo.HOSTS if host.media is not None and host.name != "mllama" and not host.missing]


def with_idle(host: zoo.TinyHost) -> tuple[Any, str]:
    """A host whose tower runs idle on the zoo's media, in the place of a processor's, and their kind."""
    model = apply_tpo(host.build(), zoo.tokenizer(), heads=["region"]).train()
    assert host.media is not None
    media = host.media(1)
    kind = next(name for name in FEATURES if name in media)
    try:
        accepted = inspect.signature(model.tpo.hooks.idle._method(kind)).parameters
    except HostError as error:
        pytest.skip(str(error))  # older releases of transformers
    model.tpo.hooks.idle._inputs[kind] = {name: value for name, value in media.items() if name in accepted}
    return model, kind


def batches(host: zoo.TinyHost, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """With media, and without."""
    both = [zoo.with_tasks(host, model, zoo.example(host, model, media=media)) for media in (True, False)]
    for batch in both:
        batch["task_targets"] = {"region": {"boxes_xyxy": zoo.boxes(4)}}
    return both[0], both[1]


def backward(model: Any, batch: dict[str, Any]) -> tuple[Tensor, list[str]]:
    """The loss, and the parameters in the order in which their gradients came."""
    order: list[str] = []
    named = list(model.named_parameters())
    handles = [p.register_post_accumulate_grad_hook(lambda _, name=n: order.append(name)) for n, p in named]
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    for handle in handles:
        handle.remove()
    return loss.detach(), order


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_gradients_come_as_with_media(host: zoo.TinyHost) -> None:
    model, kind = with_idle(host)
    media, text = batches(host, model)
    plain, without = backward(model, text)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    loss, order = backward(model, text | {"task_idle_media": (kind,)})
    assert loss == plain
    assert len(order) > len(without)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, gradients.get(name, torch.zeros(()).expand_as(parameter))), name
    assert order == backward(model, media)[1]


def test_features_that_are_not_finite_change_nothing() -> None:
    host = zoo.host("llava")
    model, kind = with_idle(host)
    text = batches(host, model)[1]
    plain, _ = backward(model, text)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.bias.fill_(float("nan"))
    loss, _ = backward(model, text | {"task_idle_media": (kind,)})
    assert loss == plain
    towers = [p for name, p in model.named_parameters() if "vision" in name or "projector" in name]
    assert all(p.grad is None or not p.grad.any() for p in towers)
    assert any(p.grad is not None for p in towers)


def test_the_tower_runs_only_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    host = zoo.host("llava")
    model, kind = with_idle(host)
    text = batches(host, model)[1]
    calls: list[nn.Module] = []
    model.tpo.host.towers[0].register_forward_hook(lambda module, *_: calls.append(module))
    model(**text)
    assert not calls
    model(**text, task_idle_media=(kind,))
    assert len(calls) == 1


HAS_METHODS = pytest.mark.skipif(
    not hasattr(LlavaOnevisionForConditionalGeneration, "get_image_features"),
    reason="this transformers' hosts have no get_image_features",
)


@HAS_METHODS
def test_black_media_of_a_processor(tmp_path: Path) -> None:
    from tpo_shapes.host import build_model, build_processor

    processor = build_processor()
    model = apply_tpo(build_model(processor.tokenizer, width=32, num_layers=1), processor, heads=["region"]).train()
    model.tpo.hooks.idle.check(list(FEATURES))
    zero = model.tpo.hooks.idle.run(list(FEATURES), model.tpo.host.towers)
    assert isinstance(zero, Tensor)
    assert zero == 0
    zero.backward()
    projector = [p for name, p in model.named_parameters() if "projector" in name]
    assert all(p.grad is not None and not p.grad.any() for p in projector)


@HAS_METHODS
def test_refusals() -> None:
    host = zoo.host("mllama")
    if not host.missing:
        with pytest.raises(HostError, match="MllamaForConditionalGeneration has no method get_image_features"):
            IdleTowers(host.build(), None).check(["pixel_values"])
    with pytest.raises(HostError, match="has no method known here that makes features of 'images' alone"):
        IdleTowers(zoo.host("llama").build(), None).check(["images"])
    with pytest.raises(HostError, match=r"no black media could be made for 'pixel_values' .* has no processor"):
        IdleTowers(zoo.host("qwen2_vl").build(), None).check(["pixel_values"])
